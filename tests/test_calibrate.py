"""Statistics of batch norms in ONNX graphs estimated anew: those of all data together, in the right order, undoable."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import assert_relative, conv_bn, in_constants, in_float64, initializers, run_onnxruntime, text_model
from onnx_models import statistics as random_statistics
from safetensors.numpy import save_file

import export
import export.calibration.stage_runner
import fastbn
from export import calibrate, calibrate_graph, restore
from export.calibration.calibrate import Totals
from export.calibration.running_stats import RunningStats
from export.calibration.stages import Stages
from export.files import as_model, to_proto
from export.folding.constants import Constants
from export.proof import child
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ModelError

SIZES = (5, 1, 17, 2)
TOLERANCE = {np.float16: 2e-3, np.float32: 2e-5, np.float64: 1e-10}


def draw(rng, shape=(2, 6, 6), sizes=SIZES, dtype=np.float32):
    """Batches of unequal sizes, means and deviations."""
    return [((1 + i) * rng.standard_normal((n, *shape)) + 2 * i).astype(dtype) for i, n in enumerate(sizes)]


def weights(rng, *shape):
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def chain(rng, dtype=np.float32):
    """Two batch norms, one after the other."""
    arrays = {"W": weights(rng, 3, 2, 3, 3), "U": weights(rng, 4, 3, 1, 1)}
    arrays |= random_statistics(rng, 3, "1") | random_statistics(rng, 4, "2")
    body = "c = Conv(x, W) d = BatchNormalization(c, s1, b1, m1, v1) e = Relu(d) f = Conv(e, U)"
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    kind = {np.float16: "float16", np.float32: "float"}[dtype]
    shapes = {"x": f"{kind}[N, 2, 6, 6] x", "y": f"{kind}[N, 4, 4, 4] y"}
    return text_model(f"{body} y = BatchNormalization(f, s2, b2, m2, v2)", arrays, **shapes)


def block(rng):
    """A residual block: two independent batch norms, then one that needs both, then one that reads an early value."""
    arrays = {name: weights(rng, 3, 3, 1, 1) for name in ("W2", "W3", "W4")} | {"W1": weights(rng, 3, 2, 1, 1)}
    for number in "12345":
        arrays |= random_statistics(rng, 3, number)
    norm = "BatchNormalization({0}, s{1}, b{1}, m{1}, v{1})".format
    body = f"""
        c1 = Conv(x, W1) n1 = {norm("c1", 1)} r1 = Relu(n1)
        c2 = Conv(r1, W2) n2 = {norm("c2", 2)} n3 = {norm("r1", 3)}
        sum = Add(n2, n3) r2 = Relu(sum) c3 = Conv(r2, W3) n4 = {norm("c3", 4)}
        late = Add(n4, r1) c4 = Conv(late, W4) y = {norm("c4", 5)}
    """
    return text_model(body, arrays)


def dense(rng):
    """Fully connected layers, one of which reads a batch norm of the input itself."""
    arrays = {"W": weights(rng, 6, 4), "U": weights(rng, 4, 3)}
    for number, channels in (("1", 6), ("2", 4), ("3", 3)):
        arrays |= random_statistics(rng, channels, number)
    norm = "BatchNormalization({0}, s{1}, b{1}, m{1}, v{1})".format
    body = f"n = {norm('x', 1)} g = Gemm(n, W) h = {norm('g', 2)} t = Tanh(h) u = MatMul(t, U) y = {norm('u', 3)}"
    return text_model(body, arrays, x="float[N, 6] x")


def captured(rng):
    """A value between two batch norms that only the branches of an If read."""
    arrays = {"W": weights(rng, 3, 2, 1, 1), "two": np.float32(2), "yes": np.array(True)}
    arrays |= random_statistics(rng, 3, "1") | random_statistics(rng, 3, "2")
    body = """
        c = Conv(x, W) n = BatchNormalization(c, s1, b1, m1, v1)
        h = If (yes) <then_branch = then () => (float[N, 3, 6, 6] p) { p = Mul(n, two) },
                      else_branch = other () => (float[N, 3, 6, 6] q) { q = Identity(n) }>
        y = BatchNormalization(h, s2, b2, m2, v2)
    """
    return text_model(body, arrays)


MODELS = {"chain": (chain, (2, 6, 6)), "block": (block, (2, 6, 6)), "dense": (dense, (6,)), "If": (captured, (2, 6, 6))}


def norms_of(model):
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def twin(model, batches, once=False):
    """(mean, variance) of every batch norm on all data, one after the other, by onnx's evaluator in float64."""
    x = np.concatenate(batches).astype(np.float64)
    work = in_float64(model)
    found = []
    for node in norms_of(work):
        probe = onnx.ModelProto()
        probe.CopyFrom(work)
        probe.graph.output.append(helper.make_tensor_value_info(node.input[0], onnx.TensorProto.DOUBLE, None))
        known = node.input[0] == "x"
        c = x if known else onnx.reference.ReferenceEvaluator(probe).run([node.input[0]], {"x": x})[0]
        axes = (0, *range(2, c.ndim))
        found.append((c.mean(axes), c.var(axes)))
        if not once:
            put(work, node, *found[-1])
    return found


def put(model, node, mean, var):
    for name, array in zip(node.input[3:], (mean, var), strict=True):
        [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def statistics(model):
    arrays = initializers(model)
    return [tuple(arrays[name] for name in node.input[3:]) for node in norms_of(model)]


def assert_statistics(model, want, tolerance=TOLERANCE[np.float32]):
    got = statistics(model)
    assert len(got) == len(want)
    for (mean, var), (true_mean, true_var) in zip(got, want, strict=True):
        assert (
            np.abs(mean - true_mean).max() <= tolerance * np.sqrt(true_var).max() + tolerance * np.abs(true_mean).max()
        )
        np.testing.assert_allclose(var, true_var, rtol=2 * tolerance, atol=tolerance * true_var.max())


# What is estimated


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_all_data_together(name, once, rng):
    build, shape = MODELS[name]
    model, batches = build(rng), draw(rng, shape)
    done = calibrate(model, batches, mode="once" if once else "layers")
    onnx.checker.check_model(done, full_check=True)
    assert_statistics(done, twin(model, batches, once))
    assert [node.op_type for node in done.graph.node] == [node.op_type for node in model.graph.node]


def test_later_layers_see_the_corrected_earlier_ones(rng):
    """What the second batch norm gets differs between the modes; the first one's does not."""
    model, batches = chain(rng), draw(rng)
    (first, second), (other_first, other_second) = (
        statistics(calibrate(model, batches, mode=mode)) for mode in ("layers", "once")
    )
    np.testing.assert_array_equal(first, other_first)
    assert np.abs(second[1] - other_second[1]).max() > 0.05 * second[1].max()
    for mode, own in (("layers", True), ("once", False)):
        y = run_onnxruntime(calibrate(model, batches, mode=mode), {"x": np.concatenate(batches)})[0]
        arrays = initializers(model)
        normal = (y - arrays["b2"][:, None, None]) / arrays["s2"][:, None, None]
        assert (np.abs(normal.std((0, 2, 3)) - 1).max() < 1e-3) == own


def test_another_pass_changes_nothing(rng):
    model, batches = block(rng), draw(rng)
    once = calibrate(model, batches)
    assert calibrate(once, batches) == once


def test_no_memory_for_activations_gives_the_same_bits(rng):
    model, batches = block(rng), draw(rng)
    want = calibrate(model, batches)
    assert calibrate(model, batches, cache_bytes=0) == want
    assert calibrate(model, batches, cache_bytes=8_000) == want


def test_weights_beyond_what_protobuf_holds(rng, monkeypatch):
    model, batches = block(rng), draw(rng)
    want = calibrate(model, batches)
    monkeypatch.setattr(export.calibration.stage_runner, "PROTOBUF_LIMIT", 2)
    assert calibrate(model, batches) == want


def test_independent_batch_norms_share_a_pass(rng):
    model = as_model(block(rng))
    norms = [RunningStats.read(Constants(model), node) for node in model.graph if node.op_type == "BatchNormalization"]
    stages = Stages(model, norms, ["x"], once=False)
    assert [[norm.key for norm in stages.norms[i]] for i in range(len(stages))] == [["n1"], ["n2", "n3"], ["n4"], ["y"]]
    assert len(Stages(model, norms, ["x"], once=True)) == 1


def test_a_stage_runs_its_own_nodes_alone(rng):
    model = as_model(block(rng))
    norms = [RunningStats.read(Constants(model), node) for node in model.graph if node.op_type == "BatchNormalization"]
    stage = Stages(model, norms, ["x"], once=False).cut(1, 2, {})
    assert [node.op_type for node in stage.model.graph] == ["BatchNormalization"] * 2 + ["Add", "Relu", "Conv"]
    assert (stage.inputs, set(stage.reads), set(stage.keeps)) == ((), {"c2", "r1"}, {"c3", "r1"})


@pytest.mark.parametrize("mode", ["layers", "once"])
def test_order_and_cut_of_the_data_do_not_matter(mode, rng):
    model, batches = chain(rng), draw(rng)
    want = statistics(calibrate(model, batches, mode=mode))
    assert_statistics(calibrate(model, batches[::-1], mode=mode), want, 1e-6)
    assert_statistics(calibrate(model, [np.concatenate(batches)], mode=mode), want, 1e-6)


@given(cuts=st.lists(st.integers(1, 39), max_size=8, unique=True), order=st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_moments_of_any_parts_in_any_order_merge_to_those_of_the_whole(cuts, order):
    x = 1e3 + np.random.default_rng(0).standard_normal((40, 3, 2))
    parts = np.split(x, sorted(cuts))
    order.shuffle(parts)
    total = Totals("n")
    for batch, part in enumerate(parts):
        total.add(child._moments(part), batch)
    assert total.count == 80
    np.testing.assert_allclose(total.mean, x.mean((0, 2)), rtol=1e-14)
    np.testing.assert_allclose(total.var, x.var((0, 2)), rtol=1e-10)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (1, 3), (7,), (2, 1, 5), (3, 2, 2, 2, 2), (5, 3, 300, 300)])
def test_moments_of_every_rank(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    count, mean, squares = child._moments(x)
    channels = shape[1] if len(shape) > 1 else 1
    assert count == x.size // channels
    if count:
        rows = x.reshape(shape[0], channels, -1).astype(np.float64)
        np.testing.assert_allclose(mean, rows.mean((0, 2)), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(squares, rows.var((0, 2)) * count, rtol=1e-12)


def test_a_large_offset_does_not_cancel(rng):
    """E[x^2] - E[x]^2 of float32 has nothing left at an offset of 1e4."""
    arrays = random_statistics(rng, 3)
    model = text_model("y = BatchNormalization(x, s, b, m, v)", arrays, x="float[N, 3] x")
    batches = [(1e4 + rng.standard_normal((n, 3))).astype(np.float32) for n in (400, 7, 90)]
    [(mean, var)] = statistics(calibrate(model, batches))
    x = np.concatenate(batches).astype(np.float64)
    np.testing.assert_array_equal(mean, x.mean(0).astype(np.float32))
    np.testing.assert_allclose(var, x.var(0), rtol=1e-7)


def test_one_batch_gives_what_training_finds(rng, tmp_path):
    """With one batch, layer by layer is what ``update_bn_stats`` does, but for the unbiased variance."""
    fastbn.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    export.export(model, tmp_path / "model.onnx", input_shape=(2, 6, 6), fold=False)
    [x] = draw(rng, sizes=(9,))
    fastbn.update_bn_stats(model, [x])
    for index, (mean, var) in zip((1, 4), statistics(calibrate(tmp_path / "model.onnx", [x])), strict=True):
        count = len(x) * (16 if index == 1 else 4)
        np.testing.assert_allclose(mean, model[index].running_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(var, model[index].running_var * ((count - 1) / count), rtol=1e-4)


def test_the_population_variance_is_stored(rng):
    model = text_model("y = BatchNormalization(x, s, b, m, v)", random_statistics(rng, 1), x="float[N, 1] x")
    [(mean, var)] = statistics(calibrate(model, [np.float32([[1]]), np.float32([[3]])]))
    assert (mean, var) == (2, 1)


def test_a_new_domain_is_undone(rng):
    """AdaBN: on data that is scaled and shifted, the model calibrated there answers as the first does at home."""
    model = chain(rng)
    home = [rng.standard_normal((n, 2, 6, 6)).astype(np.float32) for n in (20, 13)]
    away = [np.float32(0.2) * batch + np.float32(7) for batch in home]
    first = calibrate(model, home)
    want = run_onnxruntime(first, {"x": home[0]})[0]
    lost = run_onnxruntime(first, {"x": away[0]})[0]
    won = run_onnxruntime(calibrate(first, away), {"x": away[0]})[0]
    assert np.abs(lost - want).max() > 0.5 * np.abs(want).max()
    assert_relative(won, want, 2e-3)


def test_half_precision(rng):
    model, batches = chain(rng, np.float16), draw(rng, dtype=np.float16)
    done = calibrate(model, batches)
    assert {array.dtype for array in initializers(done).values()} == {np.dtype(np.float16)}
    assert_statistics(done, twin(model, batches), TOLERANCE[np.float16] * 2)


def test_double_precision(rng):
    arrays = {name: array.astype(np.float64) for name, array in initializers(dense(rng)).items()}
    text = "g = Gemm(x, W) y = BatchNormalization(g, s2, b2, m2, v2)"
    model = text_model(text, arrays, x="double[N, 6] x", y="double[N, 4] y")
    batches = draw(rng, (6,), dtype=np.float64)
    assert_statistics(calibrate(model, batches), twin(model, batches), TOLERANCE[np.float64])


# Where statistics live


def test_shared_statistics_are_copied(rng):
    """Of two batch norms and another reader of a constant each batch norm gets its own, the reader keeps the old."""
    arrays = {"W": weights(rng, 3, 2, 1, 1), **random_statistics(rng, 3)}
    body = """c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) e = BatchNormalization(d, s, b, m, v)
              w = Unsqueeze(v, axes) y = Mul(e, w)"""
    model = text_model(body, arrays | {"axes": np.array([1, 2])})
    batches = draw(rng)
    done = calibrate(model, batches)
    first, second = statistics(done)
    np.testing.assert_array_equal(initializers(done)["v"], arrays["v"])
    copies = onnx.ModelProto()
    copies.CopyFrom(model)
    for name in "mv":
        copies.graph.initializer.append(onnx.numpy_helper.from_array(arrays[name], f"{name}_own"))
    copies.graph.node[2].input[3:] = ["m_own", "v_own"]
    want = twin(copies, batches)
    for got, true in zip((first, second), want, strict=True):
        np.testing.assert_allclose(got, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [in_constants, lambda model: model], ids=["Constant nodes", "initialisers"])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_constants_wherever_they_are(change, ir_version, rng):
    model = chain(rng)
    batches = draw(rng)
    want = statistics(calibrate(model, batches))
    other = change(model)
    other.ir_version = ir_version
    if ir_version == 3:
        for tensor in other.graph.initializer:
            other.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    done = calibrate(other, batches)
    onnx.checker.check_model(done, full_check=True)
    assert_statistics(done, want, 0)


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 17])
def test_opsets(opset, rng):
    model = text_model(
        "y = BatchNormalization(x, s, b, m, v)", random_statistics(rng, 2), x="float[N, 2, 3] x", opset=opset
    )
    batches = draw(rng, (2, 3))
    assert_statistics(calibrate(model, batches), twin(model, batches))


def test_a_model_in_a_file_is_not_changed(rng, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(chain(rng), path)
    before = path.read_bytes()
    batches = draw(rng)
    assert calibrate(path, batches) == calibrate(onnx.load(path), batches)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_several_inputs_by_name_and_a_default(rng):
    arrays = {"W": weights(rng, 3, 2, 1, 1), "k": np.float32(2), **random_statistics(rng, 3)}
    model = text_model("c = Conv(x, W) d = Mul(c, k) e = Add(d, z) y = BatchNormalization(e, s, b, m, v)", arrays)
    model.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 3, 6, 6]))
    model.graph.input.append(helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, []))
    x, z = (rng.standard_normal((4, c, 6, 6)).astype(np.float32) for c in (2, 3))
    for k in (None, np.array(5, np.float32)):
        done = calibrate(model, ({"x": x[i : i + 2], "z": z[i : i + 2], **({"k": k} if k else {})} for i in (0, 2)))
        c = np.einsum("oi,nihw->nohw", arrays["W"][..., 0, 0].astype(float), x) * (2 if k is None else 5) + z
        assert_statistics(done, [(c.mean((0, 2, 3)), c.var((0, 2, 3)))])


# What is recovered, and what is left


def training_mode(rng, used=False, opset=17):
    """As frameworks export a network that is still in training mode."""
    model = chain(rng)
    model.opset_import[0].version = opset
    norm = norms_of(model)[0]
    extra = ["running_mean", "running_var"] if opset >= 14 else ["o1", "o2", "o3", "o4"]
    norm.output.extend(extra)
    if opset >= 14:
        norm.attribute.append(helper.make_attribute("training_mode", 1))
    if used:
        model.graph.output.append(helper.make_tensor_value_info(extra[0], onnx.TensorProto.FLOAT, [3]))
    return model


@pytest.mark.parametrize("opset", [9, 14, 17])
def test_training_mode_is_left_and_undone(opset, rng, tmp_path):
    model, batches, plain = training_mode(rng, opset=opset), draw(rng), chain(np.random.default_rng(0))
    graph = as_model(model)
    report = calibrate_graph(graph, batches, undo=tmp_path / "undo.safetensors")
    done = to_proto(graph)
    assert [layer.recovers for layer in report.layers] == ["it was in training mode", None]
    assert [len(node.output) for node in norms_of(done)] == [1, 1]
    assert not any(attribute.name == "training_mode" for attribute in norms_of(done)[0].attribute)
    assert statistics(done)[0][1].tobytes() == statistics(calibrate(plain, batches))[0][1].tobytes()
    assert restore(done, tmp_path / "undo.safetensors") == model


def test_further_outputs_that_are_used_keep_it_in_training_mode(rng):
    model = as_model(training_mode(rng, used=True))
    report = calibrate_graph(model, draw(rng))
    assert report.layers[0].reason == "its further outputs are used"
    assert report.layers[1].reason is None
    assert report.calibrated == 1
    assert len(next(node for node in model.graph if node.op_type == "BatchNormalization").outputs) == 3


def test_first_statistics_are_recovered(rng):
    model = chain(rng)
    put(model, norms_of(model)[1], np.zeros(4, np.float32), np.ones(4, np.float32))
    report = calibrate_graph(as_model(model), draw(rng))
    assert [layer.recovers for layer in report.layers] == [None, "it had its first statistics, mean 0 and variance 1"]


def overridable(model):
    model.graph.input.append(helper.make_tensor_value_info("m1", onnx.TensorProto.FLOAT, [3]))


def computed(model):
    model.graph.node.insert(0, helper.make_node("GlobalAveragePool", ["x"], ["pool"]))
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["pool"], ["m3"], keepdims=0))
    model.graph.node.insert(2, helper.make_node("Mul", ["m1", "m3"], ["m4"]))
    norms_of(model)[0].input[3] = "m4"


def spatial(model):
    model.opset_import[0].version = 7
    norms_of(model)[0].attribute.append(helper.make_attribute("spatial", 0))


LEFT = {
    "overridable": (overridable, "its mean can be given by the caller: it is an input of the graph"),
    "computed": (computed, "its mean is computed, not constant"),
    "old opset": (lambda model: setattr(model.opset_import[0], "version", 6), "its opset is below 7"),
    "integers": (
        lambda model: put(model, norms_of(model)[0], np.arange(3), np.arange(3)),
        r"its mean is int64 of shape \(3,\), not a vector of float16, float32, float64",
    ),
    "another shape": (
        lambda model: put(model, norms_of(model)[0], np.ones(3, np.float32), np.ones(4, np.float32)),
        r"its mean and variance have the shapes \(3,\) and \(4,\)",
    ),
    "every position": (spatial, r"statistics for every position \(spatial = 0\)"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_estimated_has_a_reason(case, rng):
    change, reason = LEFT[case]
    model = chain(rng)
    change(model)
    graph = as_model(model)
    refused = RunningStats.read(
        Constants(graph), next(node for node in graph.graph if node.op_type == "BatchNormalization")
    )
    assert re.search(reason, refused.reason)


def test_inside_a_subgraph_it_is_left(rng):
    arrays = random_statistics(rng, 2) | random_statistics(rng, 2, "2") | {"yes": np.array(True)}
    body = """
        h = If (yes) <then_branch = then () => (float[N, 2, 6, 6] p) { p = BatchNormalization(x, s, b, m, v) },
                      else_branch = other () => (float[N, 2, 6, 6] q) { q = Identity(x) }>
        y = BatchNormalization(h, s2, b2, m2, v2)
    """
    report = calibrate_graph(as_model(text_model(body, arrays)), draw(rng))
    assert {layer.batch_norm: layer.reason for layer in report.layers} == {
        "p": "it is inside a subgraph or a function",
        "y": None,
    }


def test_what_does_not_depend_on_the_data_is_left(rng):
    arrays = random_statistics(rng, 2) | {"k": np.ones((1, 2), np.float32)}
    model = text_model("c = BatchNormalization(k, s, b, m, v) y = Add(x, c)", arrays, x="float[N, 2] x")
    report = calibrate_graph(as_model(model), draw(rng, (2,)))
    assert report.layers[0].reason == "its input does not depend on the data"


def test_no_batch_norm(rng):
    model = text_model("y = Relu(x)", {}, x="float[N, 3] x")
    assert calibrate_graph(as_model(model), draw(rng, (3,))).layers == ()
    assert calibrate(model, draw(rng, (3,))).graph == model.graph


def test_the_report_says_how_far_statistics_moved(rng):
    arrays = random_statistics(rng, 2) | {"m": np.float32([1, 2]), "v": np.float32([4, 9])}
    model = text_model("y = BatchNormalization(x, s, b, m, v)", arrays, x="float[N, 2] x")
    x = np.float32([[-4, 3], [0, 3]])  # means -2 and 3, variances 4 and 0
    [layer] = calibrate_graph(as_model(model), [x]).layers
    assert (layer.batch_norm, layer.channels, layer.values, layer.constant) == ("y", 2, 2, 1)
    assert layer.mean_shift == pytest.approx(1.5, rel=1e-5)
    assert layer.var_ratio == pytest.approx(1e-5 / 9, rel=1e-3)


# Undoing


def test_undo_brings_back_every_bit(rng, tmp_path):
    model, undo = block(rng), tmp_path / "undo.safetensors"
    done = calibrate(model, draw(rng), undo=undo)
    assert all((a[0] != b[0]).all() for a, b in zip(statistics(done), statistics(model), strict=True))
    assert restore(done, undo) == model
    onnx.save(done, tmp_path / "done.onnx")
    assert restore(tmp_path / "done.onnx", undo) == restore(done, undo)


def test_undo_of_shared_statistics_computes_the_same_bits(rng, tmp_path):
    arrays = {"W": weights(rng, 3, 2, 1, 1), **random_statistics(rng, 3)}
    model = text_model(
        "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) y = BatchNormalization(d, s, b, m, v)", arrays
    )
    batches = draw(rng)
    back = restore(calibrate(model, batches, undo=tmp_path / "undo"), tmp_path / "undo")
    got, want = (run_onnxruntime(one, {"x": batches[0]})[0] for one in (back, model))
    np.testing.assert_array_equal(got, want)


def test_undo_must_belong_to_the_model(rng, tmp_path):
    undo = tmp_path / "undo.safetensors"
    done = calibrate(chain(rng), draw(rng), undo=undo)
    calibrate(block(rng), draw(rng), undo=tmp_path / "other")
    with pytest.raises(ModelError, match="must have the batch norm n1 of the undo file, got"):
        restore(done, tmp_path / "other")
    for array, got in ((np.ones(5, np.float32), r"float32 of shape \(5,\)"), (np.ones(3), r"float64 of shape \(3,\)")):
        other = chain(rng)
        put(other, norms_of(other)[0], array, array)
        with pytest.raises(ModelError, match=rf"the mean of batch norm d must be {got}, got float32 of shape \(3,\)"):
            restore(other, undo)


@pytest.mark.parametrize("content", [None, b"", b"text", "checkpoint"])
def test_file_that_is_no_undo_file(rng, tmp_path, content):
    path = tmp_path / "undo.safetensors"
    if content == "checkpoint":
        save_file({"d.mean": np.zeros(3)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"must be (a file|an undo file that calibrate wrote), got"):
        restore(chain(rng), path)


# What is refused


def nan_in(batches):
    batches[2][3, 1, 0, 0] = np.nan
    return batches


BAD = {
    "no batch": (lambda b: [], ArgumentError, "batches must hold at least one batch, got none"),
    "one array": (lambda b: b[0], ArgumentError, "batches must be an iterable of batches, got ndarray"),
    "one dict": (lambda b: {"x": b[0]}, ArgumentError, "batches must be an iterable of batches, got dict"),
    "no iterable": (lambda b: 3, ArgumentError, "batches must be an iterable of batches, got int"),
    "a list": (lambda b: [[1.0]], ModelError, "batch 0 must be an array or a dict"),
    "another name": (lambda b: [b[0], {"u": b[0]}], ModelError, r"batch 1 must hold the inputs \['x'\], got \['u'\]"),
    "nothing": (lambda b: [{}], ModelError, r"batch 0 must hold the inputs \['x'\], got \[\]"),
    "another dtype": (
        lambda b: [b[0], b[1].astype(float)],
        ModelError,
        "input x of batch 1 must be float32, got float64",
    ),
    "objects": (lambda b: [np.array([None])], ModelError, "must be an array of numbers, got object"),
    "another rank": (lambda b: [b[0][0]], ModelError, r"must have the shape \(N, 2, 6, 6\), got \(2, 6, 6\)"),
    "another size": (lambda b: [b[0][:, :1]], ModelError, r"must have the shape \(N, 2, 6, 6\), got \(5, 1, 6, 6\)"),
    "NaN": (nan_in, ModelError, "input of batch norm d must be finite, got NaN or infinity in channel 0 of batch 2"),
    "overflow": (lambda b: [b[0], b[1] * 1e38], ModelError, "batch norm d must be finite, got .* of batch 1"),
    "no values": (lambda b: [b[0][:0]], ModelError, "batch norm d must see more than 1 value in a channel, got 0"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("case", BAD)
def test_data_that_does_not_fit(case, rng, tmp_path):
    change, error, sentence = BAD[case]
    model = as_model(training_mode(rng))
    before = ir.to_proto(model)
    with pytest.raises(error, match=sentence) as caught:
        calibrate_graph(model, change(draw(rng)), undo=tmp_path / "undo")
    assert "\n" not in str(caught.value)
    assert ir.to_proto(model) == before
    assert not list(tmp_path.iterdir())


def test_error_in_a_later_layer_leaves_the_earlier_ones_as_they_were(rng):
    model = chain(rng)
    put(model, norms_of(model)[1], np.ones(5, np.float32), np.ones(5, np.float32))
    graph = as_model(model)
    with pytest.raises(ModelError, match="batch norm y must have 5 channels, got 4 in its input"):
        calibrate_graph(graph, draw(rng))
    assert ir.to_proto(graph) == ir.to_proto(as_model(model))


def test_statistics_that_overflow_their_dtype(rng):
    model = chain(rng, np.float16)
    with pytest.raises(ModelError, match="the statistics of batch norm d must fit in float16, got"):
        calibrate(model, [*draw(rng, dtype=np.float16), np.float16(2000) * draw(rng, dtype=np.float16)[0]])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"mode": "twice"}, ArgumentError, "mode must be layers or once, got 'twice'"),
        ({"cache_bytes": -1}, ArgumentError, "cache_bytes must be at least 0, got -1"),
        ({"cache_bytes": 1e9}, DtypeError, "cache_bytes must be an integer, got float"),
    ],
)
def test_options_that_make_no_sense(options, error, sentence, rng):
    with pytest.raises(error, match=sentence):
        calibrate(chain(rng), draw(rng), **options)


def test_model_that_onnxruntime_cannot_run(rng):
    model = text_model("c = Nonsense(x) y = BatchNormalization(c, s, b, m, v)", random_statistics(rng, 2))
    with pytest.raises(ModelError, match="calibrate: onnxruntime must be able to run the model, got"):
        calibrate(model, draw(rng))


def test_nodes_out_of_order(rng):
    model = chain(rng)
    model.graph.node.insert(0, model.graph.node.pop())
    with pytest.raises(ModelError, match="nodes must come after what they read, got BatchNormalization before f"):
        calibrate_graph(ir.from_proto(model), draw(rng))


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("import os\nos.kill(os.getpid(), 11)", r"got a crash \(signal 11\)"),
        ("import sys\nsys.exit(3)", "got exit code 3"),
        ("import sys\nprint('first\\nlast', file=sys.stderr)\nsys.exit(1)", "got last"),
    ],
)
def test_child_that_dies(rng, tmp_path, monkeypatch, script, sentence):
    path = tmp_path / "child.py"
    path.write_text(script)
    monkeypatch.setattr(export.calibration.stage_runner, "CHILD", path)
    with pytest.raises(ModelError, match=sentence):
        calibrate(chain(rng), draw(rng))


def test_an_iterator_is_read_once_and_its_error_comes_through(rng):
    batches = draw(rng)
    model = conv_bn(rng)[0]
    assert calibrate(model, iter(batches)) == calibrate(model, batches)

    def broken():
        yield batches[0]
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        calibrate(model, broken())
