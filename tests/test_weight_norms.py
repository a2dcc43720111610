"""Weight norm and spectral norm: their twins, PyTorch's layers and checkpoints, folding, export, refusals."""

import copy

import numpy as np
import onnx
import pytest
import reference
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

import export
import fastbn
import fastbn.functional as F
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError, StateError

DTYPES = [np.float32, np.float64]
SHAPES = [(5, 7), (4, 3, 3, 3), (6, 5, 3), (2, 3, 2, 2, 2), (1, 40), (40, 1), (3,)]


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


def cases():
    return [(shape, dim) for shape in SHAPES for dim in (None, *range(len(shape)))]


def gain_like(v, dim, rng):
    return rng.normal(size=F.norm_except_dim(v, dim).shape).astype(v.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), cases())
def test_weight_norm_is_its_twin(shape, dim, dtype, rng):
    v = rng.normal(size=shape).astype(dtype)
    g = gain_like(v, dim, rng)
    got = F.weight_norm(v, g, dim)
    assert got.dtype == dtype
    assert_close(got, reference.weight_norm(v, g, dim), dtype)
    assert_close(F.weight_norm(v, F.norm_except_dim(v, dim), dim), v, dtype)


@pytest.mark.parametrize(("shape", "dim"), cases())
def test_weight_norm_backward_is_the_numerical_gradient(shape, dim, rng):
    v, dw = rng.normal(size=shape), rng.normal(size=shape)
    g = gain_like(v, dim, rng)
    dv, dg = F.weight_norm_backward(dw, v, g, dim)
    np.testing.assert_allclose(
        dv, reference.numerical_gradient(lambda v: reference.weight_norm(v, g, dim), v, dw), atol=1e-7
    )
    wanted = reference.numerical_gradient(lambda g: reference.weight_norm(v, g, dim), g, dw)
    np.testing.assert_allclose(dg, wanted, atol=1e-7)


@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), dim=st.sampled_from([None, 0, 1]))
@settings(max_examples=15, deadline=None)
def test_only_the_direction_of_v_counts(seed, scale, dim):
    rng = np.random.default_rng(seed)
    v, dw = rng.normal(size=(2, 4, 5))
    g = gain_like(v, dim, rng)
    w = F.weight_norm(v, g, dim)
    np.testing.assert_allclose(F.weight_norm(scale * v, g, dim), w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(F.norm_except_dim(w, dim), np.abs(g), rtol=1e-12)
    dv, _ = F.weight_norm_backward(dw, v, g, dim)
    axes = None if dim is None else 1 - dim
    np.testing.assert_allclose((dv * v).sum(axis=axes), 0, atol=1e-12)


@pytest.mark.parametrize("lie", LAYOUTS)
def test_memory_order_makes_no_difference(lie, rng):
    v, dw = rng.normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    for dim in (None, 0, 1):
        g = gain_like(v, dim, rng)
        odd = LAYOUTS[lie](v)
        np.testing.assert_array_equal(F.weight_norm(odd, g.astype(odd.dtype), dim), F.weight_norm(v, g, dim))
        for got, want in zip(
            F.weight_norm_backward(LAYOUTS[lie](dw), odd, g.astype(odd.dtype), dim),
            F.weight_norm_backward(dw, v, g, dim),
            strict=True,
        ):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_out_is_written_and_may_be_v(dim, rng):
    v = rng.normal(size=(6, 7))
    g = gain_like(v, dim, rng)
    want, out = F.weight_norm(v, g, dim), np.empty((6, 7))
    assert F.weight_norm(v, g, dim, out=out) is out
    np.testing.assert_array_equal(out, want)
    F.weight_norm(v, g, dim, out=v)
    np.testing.assert_array_equal(v, want)


def test_the_same_bits_for_any_number_of_threads(rng):
    v, dw = rng.normal(size=(2, 130, 401)).astype(np.float32)
    g = gain_like(v, 0, rng)
    results = []
    for threads in (1, 2, 7):
        fastbn.set_num_threads(threads)
        results.append((F.weight_norm(v, g), *F.weight_norm_backward(dw, v, g)))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_large_small_and_missing_numbers():
    v = np.full((4, 3), 1e30, np.float32)
    v[1], v[2, 0], v[3] = 1e-30, np.nan, 0
    w = F.weight_norm(v, np.ones((4, 1), np.float32))
    np.testing.assert_allclose(w[:2], 1 / np.sqrt(3), rtol=1e-6)
    assert np.isnan(w[2:]).all()
    assert F.weight_norm(np.ones((0, 3)), np.ones((0, 1))).shape == (0, 3)
    assert F.weight_norm(np.ones((3, 0)), np.ones((3, 1))).shape == (3, 0)
    dv, dg = F.weight_norm_backward(np.ones((3, 0)), np.ones((3, 0)), np.ones((3, 1)))
    assert dv.shape == (3, 0)
    assert dg.shape == (3, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 0), ((7, 5), 1), ((4, 3, 3, 3), 0), ((4, 6, 2), 1)])
def test_spectral_norm_is_its_twin(shape, dim, dtype, rng):
    weight = rng.normal(size=shape).astype(dtype)
    u, v = (rng.normal(size=size).astype(dtype) for size in (shape[dim], weight.size // shape[dim]))
    for steps in (3, 0):
        want, next_u, next_v = reference.spectral_norm(weight, u, v, steps, dim)
        got, _ = F.spectral_norm(weight, u, v, steps, dim=dim)
        assert_close(got, want, dtype, scale=4)
        assert_close(u, next_u, dtype)
        assert_close(v, next_v, dtype)
    F.spectral_norm(weight, u, v, 200, dim=dim)
    got, _ = F.spectral_norm(weight, u, v, 0, dim=dim)
    matrix = np.moveaxis(got, dim, 0).reshape(shape[dim], -1)
    np.testing.assert_allclose(np.linalg.norm(matrix.astype(np.float64), 2), 1, rtol=1e-5)


def test_spectral_norm_backward_is_the_numerical_gradient_at_constant_vectors(rng):
    weight, dw = rng.normal(size=(2, 4, 3, 2))
    u, v = rng.normal(size=3), rng.normal(size=8)
    _, saved = F.spectral_norm(weight, u, v, 2, dim=1)
    wanted = reference.numerical_gradient(lambda w: reference.spectral_norm(w, u, v, 0, 1)[0], weight, dw)
    np.testing.assert_allclose(F.spectral_norm_backward(dw, saved), wanted, rtol=1e-6, atol=1e-8)


NORMS = {"weight": nn.utils.weight_norm, "spectral": nn.utils.spectral_norm}
REMOVE = {"weight": nn.utils.remove_weight_norm, "spectral": nn.utils.remove_spectral_norm}
LAYERS = {
    "Linear": ((6, 4), {}, (3, 6)),
    "Conv1d": ((4, 6, 3), {"groups": 2}, (2, 4, 7)),
    "Conv2d": ((3, 5, 3), {"padding": 1, "bias": False}, (2, 3, 5, 5)),
    "Conv3d": ((2, 3, 2), {}, (2, 2, 3, 4, 4)),
}


def layer(name, norm, dtype=np.float32, **options):
    sizes, arguments, shape = LAYERS[name]
    module = NORMS[norm](getattr(nn, name)(*sizes, **arguments), **options)
    return (module.double() if dtype is np.float64 else module), shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorchs(name, norm, dtype, rng):
    torch = pytest.importorskip("torch")
    ours, shape = layer(name, norm, dtype)
    sizes, arguments, _ = LAYERS[name]
    theirs = getattr(torch.nn, name)(*sizes, **arguments).to(torch.from_numpy(np.empty(0, dtype)).dtype)
    theirs = getattr(torch.nn.utils.parametrizations, f"{norm}_norm")(theirs)
    state = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == {k: v.shape for k, v in state.items()}
    ours.load_state_dict(state)
    x = rng.normal(size=shape).astype(dtype)
    tensor = torch.from_numpy(x).requires_grad_()
    for _ in range(2):  # of which spectral norm's second goes on from the first
        y, want = ours(x), theirs(tensor)
        assert_close(y, want.detach().numpy(), dtype)
    dy = rng.normal(size=y.shape).astype(dtype)
    want.backward(torch.from_numpy(dy))
    assert_close(ours.backward(dy), tensor.grad.numpy(), dtype, scale=3)
    for (key, parameter), (same, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == same
        assert_close(parameter.grad, other.grad.numpy(), dtype, scale=10)
    ours.eval()
    theirs.eval()
    for _ in range(2):
        assert_close(ours(x), theirs(tensor).detach().numpy(), dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_plain_layer_of_the_same_outputs_comes_back(name, norm, rng):
    module, shape = layer(name, norm)
    x = rng.normal(size=shape).astype(np.float32)
    module(x)
    want = copy.deepcopy(module).eval()(x)
    assert REMOVE[norm](module) is module
    assert [key for key in module.state_dict() if "." in key] == []
    assert next(iter(module.state_dict())) == "weight"
    assert_close(module(x), want, np.float32)
    module.backward(module(x))
    assert module.weight.grad.shape == module.weight.shape


@pytest.mark.parametrize("norm", NORMS)
def test_folded_fused_and_exported_it_is_a_plain_weight(norm, rng, tmp_path):
    wrap = NORMS[norm]
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 16, 3, bias=False)),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        wrap(nn.Conv2d(16, 16, 3)),
        nn.Flatten(),
        wrap(nn.Linear(64, 3)),
    )
    x = rng.normal(size=(4, 3, 6, 6)).astype(np.float32)
    apart, fused = copy.deepcopy(model), fastbn.fuse(copy.deepcopy(model))
    dy = rng.normal(size=(4, 3)).astype(np.float32)
    for one in (apart, fused):
        one(x)
        one.backward(dy)
    for mine, other in zip(apart.parameters(), fused.parameters(), strict=True):
        assert_close(mine.grad, other.grad, np.float32, scale=10)
    folded = fastbn.fold(apart)
    assert set(folded.state_dict()) == {f"{place}.{name}" for place in (0, 3, 5) for name in ("weight", "bias")}
    want = apart.eval()(x)
    assert_close(folded(x), want, np.float32, scale=10)
    report = export.export(apart, tmp_path / "model.onnx", input_shape=(3, 6, 6))
    assert report.ok
    written = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert written == ["Conv", "Relu", "Conv", "Flatten", "Gemm"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_checkpoints_come_back_bit_for_bit(norm, dtype, tmp_path, rng):
    wrap = NORMS[norm]
    model = nn.Sequential(wrap(nn.Conv2d(2, 3, 2, bias=False)), nn.Flatten(), wrap(nn.Linear(12, 2), dim=1))
    model = model.double() if dtype is np.float64 else model
    fastbn.save(model, tmp_path / "model.safetensors")
    loaded = fastbn.load(tmp_path / "model.safetensors")
    for (name, mine), (same, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == same
        assert mine.dtype == other.dtype == dtype
        np.testing.assert_array_equal(mine, other)
    x = rng.normal(size=(3, 2, 3, 3)).astype(dtype)
    np.testing.assert_array_equal(loaded(x), model.eval()(x))


def test_eval_mode_changes_nothing_and_keeps_nothing(rng):
    module, shape = layer("Linear", "spectral")
    module.eval()
    before = {name: array.copy() for name, array in module.state_dict().items()}
    module(rng.normal(size=shape).astype(np.float32))
    for name, array in module.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(StateError, match="a forward pass in training mode must come first, got none"):
        module.backward(np.ones((3, 4), np.float32))


def test_weight_norm_of_one_length_and_of_a_frozen_weight(rng):
    module = nn.Linear(4, 3).requires_grad_(False)
    nn.utils.weight_norm(module, dim=None)
    assert module.weight.requires_grad is False
    assert module.parametrizations.weight.original0.shape == ()
    assert np.asarray(module.weight).shape == module.weight.shape == (3, 4)
    assert module.weight.size == 12


def test_a_summary_counts_what_the_layer_multiplies():
    plain, normed = nn.Conv2d(2, 3, 3), nn.utils.weight_norm(nn.Conv2d(2, 3, 3))
    before, after = (fastbn.summary(nn.Sequential(module), (1, 2, 6, 6)) for module in (plain, normed))
    assert after.mult_adds == before.mult_adds
    assert after.parameters == before.parameters + 3


def test_a_parametrised_weight_is_not_replaced_unseen():
    module = nn.utils.weight_norm(nn.Linear(2, 2))
    sentence = "Linear: weight must be a plain parameter to be replaced, got one with weight_norm; remove that first"
    with pytest.raises(StateError, match=sentence):
        module.weight = nn.Parameter(np.ones((2, 2), np.float32))
    nn.utils.remove_weight_norm(module).weight = nn.Parameter(np.ones((2, 2), np.float32))


LINEAR = nn.Linear(2, 2)
REFUSED = [
    (lambda: nn.utils.weight_norm(5), DtypeError, "weight_norm: module must be a fastbn.nn.Module, got int"),
    (lambda: nn.utils.weight_norm(nn.ReLU()), ArgumentError, "must have a parameter weight, got none in ReLU"),
    (
        lambda: nn.utils.spectral_norm(nn.utils.weight_norm(nn.Linear(2, 2))),
        ArgumentError,
        "spectral_norm: module must have a parameter weight, got one that is parametrised already in Linear",
    ),
    (
        lambda: nn.utils.weight_norm(LINEAR, dim=2),
        ArgumentError,
        "dim must be from 0 to 1, or None for the whole, got 2",
    ),
    (
        lambda: nn.utils.weight_norm(nn.init_weights_(nn.Linear(2, 2), nn.init.zeros_)),
        ArgumentError,
        "weight_norm: weight must have a direction, got zeros alone at index 0",
    ),
    (lambda: nn.utils.spectral_norm(LINEAR, "bias"), ShapeError, "weight must have at least 2 axes, got shape"),
    (lambda: nn.utils.spectral_norm(LINEAR, n_power_iterations=0), ArgumentError, "must be at least 1, got 0"),
    (lambda: nn.utils.spectral_norm(LINEAR, eps="0"), DtypeError, "eps must be a number, got str"),
    (
        lambda: nn.utils.remove_weight_norm(LINEAR),
        ArgumentError,
        "remove_weight_norm: module must have a weight_norm on its weight, got a Linear without",
    ),
    (
        lambda: nn.utils.remove_spectral_norm(nn.utils.weight_norm(nn.Linear(2, 2))),
        ArgumentError,
        "remove_spectral_norm: module must have a spectral_norm on its weight, got a Linear without",
    ),
    (
        lambda: nn.ConvBn2d.from_pair(nn.utils.weight_norm(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2)),
        ArgumentError,
        "ConvBn2d: conv must have a plain weight, got one with weight_norm",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_refusals_leave_the_layer_as_it_is(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
    assert list(LINEAR.state_dict()) == ["weight", "bias"]
