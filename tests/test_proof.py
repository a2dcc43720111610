"""The proof must fail for a wrong model and pass for a right one, also where float32 says otherwise."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import BN, conv_bn, initializers, statistics, text_model

import export.proof.truth
from export import fold_onnx, verify
from export.proof.referee import Referee, UnjudgedError
from fastbn.errors import ModelError


@dataclass(frozen=True)
class Site:
    batch_norm: str
    values: tuple[str, ...]


def with_weight(model, name, change):
    """A copy with one initialiser changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            array = change(onnx.numpy_helper.to_array(tensor)).astype(onnx.numpy_helper.to_array(tensor).dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return copy


def chain(rng, blocks=3, channels=4, dtype=np.float32, x="float"):
    """Conv - BatchNormalization - Relu, ``blocks`` times, named c0, y0, r0 and so on."""
    arrays, body, last = {}, [], "x"
    for index in range(blocks):
        shape = (channels, 2 if index == 0 else channels, 3, 3)
        arrays[f"W{index}"] = (rng.standard_normal(shape) / 5).astype(dtype)
        arrays |= statistics(rng, channels, str(index), dtype)
        body.append(f"c{index} = Conv <pads=[1,1,1,1]> ({last}, W{index})")
        body.append(f"y{index} = BatchNormalization(c{index}, s{index}, b{index}, m{index}, v{index})")
        last = "y" if index == blocks - 1 else f"r{index}"
        body.append(f"{last} = Relu(y{index})")
    return text_model(" ".join(body), arrays, x=f"{x}[N, 2, 6, 6] x", y=f"{x}[a, b, c, d] y")


def cancelling(bias=1000.0, variance=1e-5):
    """The convolution's values lie at the batch norm's mean, far from zero beside its deviation."""
    rng = np.random.default_rng(0)
    arrays = {
        "W": (rng.standard_normal((3, 2, 3, 3)) * 1e-3).astype(np.float32),
        "d": np.full(3, bias, np.float32),
        "s": rng.uniform(0.5, 2, 3).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
        "m": np.full(3, bias, np.float32),
        "v": np.full(3, variance, np.float32),
    }
    return text_model(f"c = Conv(x, W, d) {BN}", arrays)


# What must pass


def test_folded_chain_is_as_near_to_float64_as_its_source():
    model = chain(np.random.default_rng(0))
    folded, report = fold_onnx(model)
    assert report.folded == 3
    proof = verify(model, folded)
    assert proof.ok
    assert (proof.inputs, proof.judged, proof.first_difference, proof.notes) == (6, 6, None, ())
    assert 0 < proof.candidate_error < 1e-6
    assert 0 < proof.reference_error < 1e-6
    assert [(entry.model, entry.ok) for entry in proof.optimised] == [("reference", True), ("candidate", True)]


def test_differing_from_a_source_that_is_further_from_float64_is_right():
    model = cancelling()
    proof = verify(model, fold_onnx(model)[0])
    assert proof.ok
    assert proof.max_rel > 1e-3
    assert proof.reference_error > 1e-3 > 1e-4 > proof.candidate_error
    # The other way round the source is the better one: then the same difference is an error.
    assert not verify(fold_onnx(model)[0], model).ok


def test_a_sum_that_onnxruntime_makes_one_by_one_is_rounding():
    """It loses 2e-4 of the mean of 50,176 equal numbers, and is no other operator for that."""
    rng = np.random.default_rng(0)
    arrays = {"G": rng.standard_normal((2, 2)).astype(np.float32), **statistics(rng, 2)}
    body = "d = BatchNormalization(x, s, b, m, v) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, G)"
    model = text_model(body, arrays, x="float[N, 2, 224, 224] x", y="float[N, 2] y")
    scale = arrays["s"] / np.sqrt(arrays["v"] + 1e-5)
    folded = {"G": scale[:, None] * arrays["G"], "d": (arrays["b"] - scale * arrays["m"]) @ arrays["G"]}
    body = "e = GlobalAveragePool(x) f = Flatten(e) y = Gemm(f, G, d)"
    proof = verify(model, text_model(body, folded, x="float[N, 2, 224, 224] x", y="float[N, 2] y"))
    assert (proof.ok, proof.notes) == (True, ())


# What must not


@pytest.mark.parametrize("name", ["W0", "W2", "s1", "b1", "m2", "v0"])
def test_one_per_cent_more_is_found_and_its_layer_named(name):
    model = chain(np.random.default_rng(0))
    proof = verify(model, with_weight(model, name, lambda array: array * 1.01))
    assert not proof.ok
    assert proof.candidate_error > 10 * proof.reference_error
    operator = "Conv c" if name[0] == "W" else "BatchNormalization y"
    assert proof.first_difference == operator + name[1]


def test_a_source_that_is_badly_conditioned_excuses_nothing():
    """Its own error in float32 is 1e-3 to 1e-2, and 10 times that is no rounding."""
    model = cancelling()
    folded = fold_onnx(model)[0]
    weight = next(name for name, array in initializers(folded).items() if array.ndim == 4)
    assert not verify(model, with_weight(folded, weight, lambda array: array * 1.5)).ok


def test_naive_fold_in_front_of_zero_padding_is_found():
    """BN -> Conv with zero padding: scaling the weights and moving the shift to the bias is wrong at the border."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), **statistics(rng, 2)}
    body = "n = BatchNormalization(x, s, b, m, v) y = Conv <pads=[1,1,1,1]> (n, W)"
    model = text_model(body, arrays)
    scale = arrays["s"] / np.sqrt(arrays["v"] + 1e-5)
    shift = arrays["b"] - scale * arrays["m"]
    naive = {"W": arrays["W"] * scale[:, None, None], "d": (arrays["W"] * shift[:, None, None]).sum((1, 2, 3))}
    proof = verify(model, text_model("y = Conv <pads=[1,1,1,1]> (x, W, d)", naive))
    assert not proof.ok
    assert proof.max_rel > 0.01
    inner = {"W": naive["W"], "d": naive["d"]}
    unpadded = text_model("n = BatchNormalization(x, s, b, m, v) y = Conv(n, W)", arrays)
    assert verify(unpadded, text_model("y = Conv(x, W, d)", inner)).ok


def piecewise(body, **arrays):
    return text_model(body, {name: np.float32([value]) for name, value in arrays.items()}, x="float[N, 3] x")


def test_difference_on_large_inputs_alone():
    limit = piecewise("y = Min(x, k)", k=100.0)
    assert not verify(piecewise("y = Identity(x)"), limit).ok
    assert verify(piecewise("y = Identity(x)"), piecewise("y = Min(x, k)", k=1e6)).ok


def test_difference_on_zeros_alone():
    """0 / 0 is no number, and 1e-30 is no zero."""
    proof = verify(piecewise("y = Identity(x)"), piecewise("q = Div(x, x) y = Mul(x, q)"))
    assert not proof.ok
    assert verify(piecewise("y = Identity(x)"), piecewise("y = Add(x, k)", k=1e-7)).ok
    assert not verify(piecewise("y = Identity(x)"), piecewise("y = Add(x, k)", k=1e-3)).ok


def test_a_dead_branch_hides_nothing_from_the_sites():
    """Behind a Relu that lets nothing through a wrong batch norm does not show in the output."""
    rng = np.random.default_rng(0)
    model, _ = conv_bn(rng)
    body = "c = Conv(x, W) z = BatchNormalization(c, s, b, m, v) h = Mul(z, zero) y = Add(h, one)"
    arrays = initializers(model) | {"zero": np.float32([0]), "one": np.float32([1])}
    model = text_model(body, arrays)
    wrong = with_weight(model, "W", lambda array: array * 1.01)
    assert verify(model, wrong).ok
    proof = verify(model, wrong, sites=[Site("z", ("z",))])
    assert not proof.ok
    assert proof.first_difference == "z"


# Where they part


def test_sites_are_measured_in_the_graphs_order_and_the_first_that_differs_is_named(tmp_path):
    model = chain(np.random.default_rng(0))
    sites = [Site(f"bn{index}", (f"y{index}",)) for index in (2, 0, 1)]
    folded = fold_onnx(model)[0]
    proof = verify(model, folded, sites=sites)
    assert proof.ok
    assert [(site.layer, site.value) for site in proof.sites] == [("bn0", "y0"), ("bn1", "y1"), ("bn2", "y2")]
    assert all(0 < site.candidate_error < 1e-6 for site in proof.sites)
    weights = [name for name, array in initializers(folded).items() if array.ndim == 4]
    wrong = with_weight(folded, weights[1], lambda array: array * 1.01)
    proof = verify(model, wrong, sites=sites)
    assert [site.ok for site in proof.sites] == [True, False, False]
    assert proof.first_difference == "bn1"


def test_sites_of_a_model_with_its_weights_in_another_file(tmp_path):
    model = chain(np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="weights.data")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    proof = verify(path, path, sites=[Site("bn0", ("y0",)), Site("bn1", ("no such value",))])
    assert proof.ok
    assert [site.value for site in proof.sites] == ["y0"]
    assert proof.notes == ("not compared inside the models, by their outputs alone: 1 batch norms (bn1)",)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# What onnxruntime's optimiser does


def test_optimiser_that_changes_the_answer_is_reported_and_no_failure():
    """onnxruntime 1.31.1 makes one Gemm of this, although Transpose has moved the channels."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((4, 4)).astype(np.float32), **statistics(rng, 4)}
    body = "p = MatMul(x, W) c = Transpose <perm=[1,0]> (p) y = BatchNormalization(c, s, b, m, v)"
    model = text_model(body, arrays, x="float[4, 4] x")
    proof = verify(model, model)
    assert proof.ok
    for entry in proof.optimised:
        assert entry.ok == (entry.error < 1e-4)
    if onnx.__version__ and __import__("onnxruntime").__version__.startswith("1.31."):
        assert not proof.optimised[0].ok
        assert proof.optimised[0].error > 0.1


# Without onnxruntime, or without the referee


def crashing():
    """Four empty outputs: onnxruntime 1.31.1 dies with its optimiser off."""
    model, _ = conv_bn(np.random.default_rng(0))
    model.opset_import[0].version = 9
    model.graph.node[1].output.extend(["", "", "", ""])
    return model


def test_a_source_that_crashes_onnxruntime_is_proved_all_the_same():
    model = crashing()
    right = conv_bn(np.random.default_rng(0))[0]
    proof = verify(model, right)
    assert proof.ok
    assert proof.candidate_error < 1e-5
    assert not verify(model, with_weight(right, "W", lambda array: array * 1.01)).ok


@pytest.mark.parametrize(("kind", "dtype"), [("double", np.float64), ("bfloat16", None)])
def test_types_that_onnxruntime_has_no_convolution_for(kind, dtype):
    model = chain(np.random.default_rng(0), dtype=np.float32 if dtype is None else dtype, x=kind)
    if dtype is None:
        in_bfloat16(model)
    proof = verify(model, fold_onnx(model)[0] if dtype else model)
    assert proof.ok
    [note] = proof.notes
    assert note.startswith("onnxruntime cannot run the source")
    assert proof.tolerance == pytest.approx(1e-4 * (2.0**-29 if dtype else 2.0**16) ** 0.5)
    wrong = verify(model, with_weight(model, "W1", lambda array: array * 1.1))
    assert not wrong.ok


def in_bfloat16(model):
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        content = helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, array.shape, array.ravel().tolist())
        tensor.CopyFrom(content)


def test_float16():
    model = chain(np.random.default_rng(0), dtype=np.float16, x="float16")
    proof = verify(model, fold_onnx(model)[0])
    assert proof.ok
    assert proof.tolerance == pytest.approx(1e-4 * 2**6.5)
    assert 1e-5 < proof.candidate_error < 1e-2
    assert not verify(model, with_weight(model, "W1", lambda array: array * 1.1)).ok


def test_operator_that_the_referee_does_not_know():
    model = text_model("h = their.Gelu(x) y = Mul(h, k)", {"k": np.float32([1])}, x="float[N, 3] x")
    for holder in (model.opset_import.add(), model.graph.node[0]):
        holder.domain = "com.microsoft"
    model.opset_import[1].version = 1
    proof = verify(model, model)
    assert (proof.ok, proof.judged, proof.candidate_error) == (True, 0, None)
    [note] = proof.notes
    assert note.startswith("no judgement in float64, both are compared directly")
    assert not verify(model, with_weight(model, "k", lambda array: array * 1.001)).ok


def test_a_referee_that_reads_an_operator_differently_is_not_trusted(monkeypatch):
    """Otherwise its distance from both would excuse everything."""
    model = chain(np.random.default_rng(0))
    run = Referee.run

    def wrong(self, inputs, values=()):
        return {name: array + 1 for name, array in run(self, inputs, values).items()}

    monkeypatch.setattr(Referee, "run", wrong)
    changed = with_weight(model, "W2", lambda array: array * 1.01)
    proof = verify(model, changed)
    assert not proof.ok
    assert proof.judged == 0
    assert "rounding explains" in proof.notes[0]


def test_a_referee_out_of_time_judges_what_differs_and_no_more(monkeypatch):
    monkeypatch.setattr(export.proof.truth, "PATIENCE", 0.0)
    model = cancelling()
    assert verify(model, model).judged == 1
    proof = verify(model, fold_onnx(model)[0])
    assert proof.ok
    assert proof.judged > 1
    monkeypatch.setattr("export.proof.referee.SECONDS", -1.0)
    proof = verify(model, model)
    assert (proof.ok, proof.judged) == (True, 0)
    assert "seconds" in proof.notes[0]


def test_weights_too_many_for_float64(monkeypatch, tmp_path):
    monkeypatch.setattr("export.proof.referee.LARGEST", 100)
    path = tmp_path / "model.onnx"
    onnx.save(chain(np.random.default_rng(0)), path)
    with pytest.raises(UnjudgedError, match="too many"):
        Referee(path)
    assert "too many" in verify(path, path).notes[0]


def test_candidate_that_does_not_run_is_an_error():
    model = chain(np.random.default_rng(0))
    with pytest.raises(ModelError, match="onnxruntime must be able to run the model"):
        verify(model, with_weight(model, "W1", lambda array: array[:, :1]))


def test_random_numbers_prove_nothing():
    """They are as far from each other in two runs of one model as anything may be."""
    model = text_model("r = RandomNormalLike(x) y = Add(x, r)", {}, x="float[N, 3] x")
    proof = verify(model, model)
    assert (proof.ok, proof.judged) == (False, 0)
    assert "random" in proof.notes[0]


def test_quantised_model():
    """Quantised values turn over where rounding does, in both models alike; another scale is found."""
    arrays = {"k": np.float32(0.1), "z": np.uint8(128)}
    model = text_model("q = QuantizeLinear(x, k, z) y = DequantizeLinear(q, k, z)", arrays)
    proof = verify(model, model)
    assert (proof.ok, proof.judged) == (True, 6)
    assert proof.tolerance > 1 / 128
    assert not verify(model, with_weight(model, "k", lambda array: array * 1.1)).ok
