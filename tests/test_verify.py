"""Whether two models are the same network: what is compared, how it is judged, and what cannot be."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models import conv_bn, text_model

import export.proof.runtime
from export import Comparison, VerifyReport, verify
from export.proof import child
from export.proof.compare import compare
from export.proof.inputs import random_inputs
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ModelError

NAN, INF = float("nan"), float("inf")


def scaled(factor=1.0, outputs=("y", "z")):
    """y = relu(factor x), z = -x."""
    body = {"y": "h = Mul(x, k) y = Relu(h)", "z": "z = Neg(x)"}
    declared = ", ".join(f"float[N, 3] {name}" for name in outputs)
    return text_model(" ".join(body.values()), {"k": np.float32([factor])}, x="float[N, 3] x", y=declared)


def identity(kind, shape="N, 3", operator="Identity"):
    return text_model(f"y = {operator}(x)", {}, x=f"{kind}[{shape}] x", y=f"{kind}[{shape}] y")


def judged(wanted, got, tolerance=1e-4):
    """The report on outputs made up here: for every set of inputs one array an output."""
    pairs = [
        [[np.asarray(answers[index]) for answers in side] for side in (wanted, got)] for index in range(len(wanted[0]))
    ]
    outputs = [compare(f"out{index}", *sides, [None] * len(wanted), tolerance) for index, sides in enumerate(pairs)]
    return VerifyReport(tuple(outputs), len(wanted), tolerance)


# Real models, in real child processes


def test_equal_models(tmp_path):
    model, _ = conv_bn(np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    report = verify(str(path), model)
    assert report.ok
    assert report.outputs == (Comparison("y", 0.0, 0.0, True, report.reference_error, report.reference_error),)
    assert 0 < report.reference_error < 1e-6
    assert (report.max_abs, report.max_rel, report.inputs, report.tolerance) == (0.0, 0.0, 6, 1e-4)
    assert list(tmp_path.iterdir()) == [path]


def test_changed_weight_is_measured():
    """On (1, -2, 4) y is (2, 0, 8) and (3, 0, 12): 4 apart, half of the reference's largest."""
    inputs = [{"x": np.float32([[1, -2, 4]])}]
    report = verify(scaled(2), scaled(3), inputs)
    assert not report.ok
    assert report.outputs == (Comparison("y", 4.0, 0.5, False, 0.0, 0.5), Comparison("z", 0.0, 0.0, True, 0.0, 0.0))
    assert (report.reference_error, report.candidate_error, report.first_difference) == (0.0, 0.5, "Mul h")
    assert (report.max_abs, report.max_rel, report.inputs) == (4.0, 0.5, 1)
    assert verify(scaled(2), scaled(3), inputs, tolerance=0.5).ok
    other_way = verify(scaled(3), scaled(2), inputs)
    assert (other_way.max_abs, other_way.max_rel) == (4.0, 4 / 12)


def test_random_inputs_find_a_changed_weight():
    report = verify(scaled(1), scaled(1.01))
    assert not report.ok
    assert report.max_rel == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("candidate_is_module", [False, True])
def test_module_beside_onnx(candidate_is_module):
    module, onnx_model = nn.Sequential(nn.ReLU()), scaled(1, outputs=("y",))
    pair = (onnx_model, module) if candidate_is_module else (module, onnx_model)
    report = verify(*pair)
    assert report.ok
    assert [output.output for output in report.outputs] == ["y"]
    different = (
        verify(scaled(1.5, outputs=("y",)), module) if candidate_is_module else verify(module, scaled(1.5, ("y",)))
    )
    assert not different.ok


def test_module_runs_in_eval_mode_and_gets_its_modes_back():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    module.train()
    module[2].eval()
    modes = [part.training for part in module.modules()]
    assert verify(module, module, [{"x": np.ones((1, 3), np.float32)}]).ok
    assert [part.training for part in module.modules()] == modes
    with pytest.raises(Exception, match="must have 3 channels"):
        verify(module, module, [{"x": np.ones((1, 4), np.float32)}])
    assert [part.training for part in module.modules()] == modes
    np.testing.assert_array_equal(module[0].running_mean, 0)


@pytest.mark.parametrize("kind", ["int64", "bool", "float16", "double"])
def test_inputs_of_every_kind(kind):
    report = verify(identity(kind), identity(kind))
    assert report.ok
    assert (report.inputs, report.judged) == (6, 6)


def test_several_inputs_given_by_the_user():
    model = text_model("y = Add(x, u)", {}, x="float[N, 2] x, float[N, 2] u", y="float[N, 2] y")
    other = text_model("y = Sub(x, u)", {}, x="float[N, 2] x, float[N, 2] u", y="float[N, 2] y")
    one, zero = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    assert verify(model, other, [{"x": one, "u": zero}]).ok
    report = verify(model, other, [{"u": zero, "x": one}, {"x": one, "u": 3 * one}])
    assert (report.ok, report.inputs, report.max_abs) == (False, 2, 6.0)


def test_inputs_with_defaults_are_left_out():
    model, arrays = conv_bn(np.random.default_rng(0))
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, arrays["s"].shape))
    assert [list(inputs) for inputs in random_inputs(model)] == [["x"]] * 3
    assert verify(model, model).ok


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("N, 3", [(2, 3), (1, 3), (3, 3)]), ("N, C, 2", [(2, 32, 2), (1, 32, 2), (3, 32, 2)]), ("4", [(4,)] * 3)],
)
def test_random_inputs_vary_the_free_axes(shape, expected):
    sets = random_inputs(identity("float", shape))
    assert [inputs["x"].shape for inputs in sets] == expected
    assert all(inputs["x"].dtype == np.float32 for inputs in sets)
    again = random_inputs(identity("float", shape))
    for inputs, same in zip(sets, again, strict=True):
        np.testing.assert_array_equal(inputs["x"], same["x"])
    [alone] = random_inputs(identity("float", shape), seeds=(7,), batch=5)
    free = {"N": 5, "C": 32}
    assert alone["x"].shape == tuple(free.get(size.strip()) or int(size) for size in shape.split(","))


def test_random_integers_are_zeros_and_ones():
    sets = random_inputs(identity("int64", "N, 100"))
    assert {value for inputs in sets for value in np.unique(inputs["x"])} == {0, 1}


def test_axis_of_length_zero_stays_empty():
    [inputs] = random_inputs(identity("float", "0, 3"), seeds=(0,))
    assert inputs["x"].shape == (0, 3)
    assert verify(identity("float", "0, 3"), identity("float", "0, 3")).ok


# What cannot be compared


def assert_one_sentence(caught):
    assert "must" in str(caught.value)
    assert "got" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "onnxruntime_src" not in str(caught.value)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "module"])
def test_another_number_of_outputs(swapped, kind):
    one = scaled(1, ("y",)) if kind == "onnx" else nn.Sequential(nn.ReLU())
    pair = (scaled(1), one) if swapped else (one, scaled(1))
    with pytest.raises(ModelError, match="outputs") as caught:
        verify(*pair)
    assert_one_sentence(caught)


def test_outputs_in_another_order_are_the_same_by_name_or_refused():
    try:
        report = verify(scaled(2, ("y", "z")), scaled(2, ("z", "y")))
    except ModelError:
        return
    assert report.ok


def test_another_shape_of_an_output():
    with pytest.raises(ModelError, match=r"output y must have shape \(2, 3\), got \(3, 2\)") as caught:
        verify(identity("float"), text_model("y = Transpose(x)", {}, x="float[N, 3] x", y="float[a, b] y"))
    assert_one_sentence(caught)


UNRUNNABLE = {
    "unknown operator": lambda: text_model("y = Nonsense(x)", {}, x="float[N, 3] x"),
    "unknown domain": lambda: text_model("y = their.Relu(x)", {}, x="float[N, 3] x"),
    "opset of the future": lambda: text_model("y = Relu(x)", {}, x="float[N, 3] x", opset=9999),
    "sizes that do not fit": lambda: text_model(
        "y = MatMul(x, W)", {"W": np.ones((4, 4), np.float32)}, x="float[N, 3] x"
    ),
    "no such value": lambda: text_model("y = Relu(nowhere)", {}, x="float[N, 3] x"),
}


@pytest.mark.parametrize("case", UNRUNNABLE)
def test_model_that_onnxruntime_cannot_run(case):
    model = UNRUNNABLE[case]()
    with pytest.raises(ModelError, match=r"must be (able to run the model|valid ONNX), got ") as caught:
        verify(model, model)
    assert_one_sentence(caught)


GIVEN = {
    "missing": [{}],
    "of another name": [{"u": np.zeros((1, 3), np.float32)}],
    "too many": [{"x": np.zeros((1, 3), np.float32), "u": np.zeros(1, np.float32)}],
    "of another dtype": [{"x": np.zeros((1, 3))}],
    "of another rank": [{"x": np.zeros(3, np.float32)}],
    "of another shape": [{"x": np.zeros((1, 4), np.float32)}],
    "good, then missing": [{"x": np.zeros((1, 3), np.float32)}, {}],
    "objects": [{"x": np.array([[None, 1, 2]])}],
    "not a single set": [],
}


@pytest.mark.parametrize("case", GIVEN)
def test_inputs_that_do_not_fit(case):
    with pytest.raises(ModelError) as caught:
        verify(identity("float"), identity("float"), GIVEN[case])
    assert_one_sentence(caught)


def test_inputs_of_unknown_rank_must_be_given():
    model = text_model("y = Relu(x)", {}, x="float[] x", y="float[] y")
    with pytest.raises(ModelError, match="give inputs") as caught:
        verify(model, model)
    assert_one_sentence(caught)
    assert verify(model, model, [{"x": np.ones((2, 2), np.float32)}]).ok


def test_inputs_must_be_given_for_two_modules():
    module = nn.Sequential(nn.ReLU())
    with pytest.raises(ModelError, match="inputs must be given") as caught:
        verify(module, module)
    assert_one_sentence(caught)


def test_module_takes_one_input():
    x = np.ones((1, 3), np.float32)
    with pytest.raises(ModelError, match="must be one array") as caught:
        verify(nn.Sequential(nn.ReLU()), scaled(1, ("y",)), [{"x": x}, {"x": x, "u": x}])
    assert_one_sentence(caught)
    assert "'u'" in str(caught.value)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("content", [None, b"", b"hello\n" * 40, b"\x08\x08"])
def test_file_that_is_no_model(tmp_path, content, given):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    inputs = [{"x": np.zeros((1, 3), np.float32)}] if given else None
    for pair in ((identity("float"), path), (path, identity("float"))):
        with pytest.raises(ModelError) as caught:
            verify(*pair, inputs)
        assert_one_sentence(caught)


@pytest.mark.parametrize(
    ("tolerance", "error"),
    [
        (-1e-9, ArgumentError),
        (float("nan"), ArgumentError),
        ("1e-4", DtypeError),
        (None, DtypeError),
        (True, DtypeError),
    ],
)
def test_tolerance_that_makes_no_sense(tolerance, error):
    with pytest.raises(error, match="tolerance must be") as caught:
        verify(scaled(), scaled(), tolerance=tolerance)
    assert_one_sentence(caught)


def test_outputs_that_are_not_numbers():
    """Text cannot be compared by its difference: equal by value, or refused in a sentence."""
    model = text_model("y = Cast<to = 8>(x)", {}, x="float[N, 3] x", y="string[N, 3] y")
    try:
        report = verify(model, model)
    except ModelError as error:
        sentence = str(error)
    else:
        assert report.ok
        sentence = "must, got"
    assert "must" in sentence
    assert "got" in sentence


# The child process


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("import os\nos.kill(os.getpid(), 11)", "a crash (signal 11)"),
        ("import os\nos.kill(os.getpid(), 9)", "a crash (signal 9)"),
        ("import sys\nsys.exit(3)", "exit code 3"),
        ("import sys\nprint('first')\nprint('second', file=sys.stderr)\nsys.exit(1)", "got second"),
    ],
)
def test_child_that_dies_is_a_model_error(tmp_path, monkeypatch, script, sentence):
    """For a fastbn model nobody else can say what the ONNX answers."""
    child = tmp_path / "child.py"
    child.write_text(script)
    monkeypatch.setattr(export.proof.runtime, "CHILD", child)
    with pytest.raises(ModelError, match="onnxruntime must be able to run the model") as caught:
        verify(nn.Sequential(nn.ReLU()), scaled(1, ("y",)))
    assert sentence in str(caught.value)
    assert_one_sentence(caught)


def test_child_runs_outside_the_callers_folder(tmp_path, monkeypatch):
    """A file of the user's cannot take the place of a module that the child imports."""
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert verify(scaled(), scaled()).ok


def test_optimiser_stays_off(monkeypatch):
    """The judge must not fold by itself; the optimiser's answers are asked for apart."""
    asked = []
    call = export.proof.runtime._call
    monkeypatch.setattr(export.proof.runtime, "_call", lambda request: asked.append(request["jobs"]) or call(request))
    assert verify(scaled(), scaled()).ok
    assert [[job["optimise"] for job in jobs] for jobs in asked] == [[False], [False, True, True]]
    made = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers: made.append(options))
    child._session("model.onnx", optimise=False)
    assert made[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_latencies_are_milliseconds_for_each_model(tmp_path):
    model, _ = conv_bn(np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    figures = export.proof.runtime.latencies([path, path], random_inputs(model, seeds=(0,))[0], seconds=0.01)
    assert len(figures) == 2
    assert all(0 < figure < 1000 for figure in figures)


# The judgement itself


JUDGEMENTS = {
    "equal": ([1, 2], [1, 2], 0.0, 0.0, True),
    "just within": ([1, 2], [1, 2.0001], 1e-4, 5e-5, True),
    "just beyond": ([1, 2], [1, 2.0003], 3e-4, 1.5e-4, False),
    "relative to the largest of the reference": ([0, 100], [0.009, 100], 0.009, 9e-5, True),
    "not to the largest of the candidate": ([0, 1], [0, 100], 99.0, 99.0, False),
    "all zeros": ([0, 0], [0, 0], 0.0, 0.0, True),
    "zeros in the reference alone": ([0, 0], [0, 0.5], 0.5, 0.5, False),
    "zeros in the reference, little in the other": ([0, 0], [0, 1e-5], 1e-5, 1e-5, True),
    "zeros in the candidate alone": ([0, 4], [0, 0], 4.0, 1.0, False),
    "NaN in the same places": ([NAN, 2], [NAN, 2], 0.0, 0.0, True),
    "NaN in another place": ([NAN, 2], [2, NAN], 0.0, 0.0, False),
    "NaN in the reference alone": ([NAN, 2], [1, 2], 0.0, 0.0, False),
    "NaN in the candidate alone": ([1, 2], [1, NAN], 0.0, 0.0, False),
    "nothing but NaN": ([NAN], [NAN], 0.0, 0.0, True),
    "the same infinities": ([INF, -INF, 1], [INF, -INF, 1], 0.0, 0.0, True),
    "infinities of another sign": ([INF, 1], [-INF, 1], 0.0, 0.0, False),
    "infinity in the candidate alone": ([1, 1], [INF, 1], 0.0, 0.0, False),
    "infinity in the reference alone": ([INF, 1], [3e38, 1], 0.0, 0.0, False),
    "infinity and NaN": ([INF, 1], [NAN, 1], 0.0, 0.0, False),
    "NaN agrees, the rest does not": ([NAN, 2], [NAN, 3], 1.0, 0.5, False),
    "no elements": ([], [], 0.0, 0.0, True),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", JUDGEMENTS)
def test_judgement(case, dtype):
    wanted, got, max_abs, max_rel, ok = JUDGEMENTS[case]
    report = judged([[np.array(wanted, dtype)]], [[np.array(got, dtype)]])
    [output] = report.outputs
    assert output.output == "out0"
    assert output.ok is ok
    assert report.ok is ok
    assert output.max_abs == pytest.approx(max_abs, rel=2e-3)
    assert output.max_rel == pytest.approx(max_rel, rel=2e-3)


def test_tolerance_of_zero_wants_the_same_bits():
    a = np.float32([1, 2])
    assert judged([[a]], [[a]], tolerance=0).ok
    assert not judged([[a]], [[np.nextafter(a, np.float32(3))]], tolerance=0).ok


def test_integers_are_compared_exactly():
    """float64 cannot tell 2^53 from 2^53 + 1."""
    a, b = np.array([2**53], np.int64), np.array([2**53 + 1], np.int64)
    assert judged([[a]], [[a]], tolerance=0).ok
    assert not judged([[a]], [[b]], tolerance=0).ok


def test_largest_float64s_do_not_overflow_into_a_warning():
    report = judged([[np.array([1e308])]], [[np.array([-1e308])]])
    assert not report.ok


def test_a_large_set_of_inputs_excuses_nothing_in_a_small_one():
    """The worst of all sets, each relative to its own largest."""
    wanted, got = [[[1.0, 0.0]], [[8.0, 0.0]], [[2.0, 0.0]]], [[[1.0, 0.125]], [[8.0, 0.5]], [[2.0, 0.25]]]
    report = judged(wanted, got, tolerance=0.125)
    assert (report.max_abs, report.max_rel, report.inputs, report.ok) == (0.5, 0.125, 3, True)
    assert not judged(wanted, got, tolerance=0.124).ok


def test_an_answer_of_nearly_nothing_is_measured_by_the_first_set():
    """Rounding where everything cancels is no difference, unless there is nothing larger to compare it with."""
    assert judged([[[1.0]], [[0.0]]], [[[1.0]], [[1e-6]]]).ok
    assert not judged([[[1.0]], [[0.0]]], [[[1.0]], [[1e-5]]]).ok
    assert not judged([[[1e-6]]], [[[2e-6]]]).ok


TRUTHS = {
    "nearer than the reference": (1.0, 1.2, 1.01, True),
    "four times as far": (1.0, 1.1, 1.39, True),
    "further than that": (1.0, 1.1, 1.41, False),
    "within the tolerance": (1.0, 1.0, 1.00009, True),
    "on the other side, but as far": (1.0, 0.9, 1.1, True),
    "number for the reference's overflow": (1.0, INF, 1.0, True),
    "another number for it": (1.0, INF, 1.1, False),
    "overflow as the reference's": (1.0, INF, INF, True),
    "overflow of its own": (1.0, 1.0, INF, False),
    "NaN for a number": (1.0, 1.0, NAN, False),
    "infinity where float64 has one": (INF, INF, INF, True),
    "a number where float64 has none": (NAN, NAN, 1.0, False),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_judgement_beside_float64(case):
    truth, wanted, got, ok = (np.array([value]) for value in TRUTHS[case])
    assert compare("y", [wanted], [got], [truth], 1e-4).ok is bool(ok)


def test_integers_beside_float64_may_be_wrong_where_the_reference_is():
    """An arg max of two values that rounding cannot tell apart."""
    truth, wanted, got = (np.array(array) for array in ([0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0]))
    assert compare("y", [wanted], [got], [truth], 1e-4).ok
    assert not compare("y", [wanted], [np.ones(6, int)], [truth], 1e-4).ok
    assert not compare("y", [truth], [wanted], [truth], 1e-4).ok


def test_every_output_is_judged_by_itself():
    """A small output is not excused by a large one."""
    report = judged([[[1000.0], [1.0]]], [[[1000.0], [1.1]]])
    assert [output.ok for output in report.outputs] == [True, False]
    assert not report.ok
    assert report.max_rel == pytest.approx(0.1)


def test_shapes_in_a_later_set_are_compared_too():
    with pytest.raises(ModelError, match=r"output out0 must have shape \(2,\), got \(1,\)"):
        judged([[[1.0]], [[1.0, 2.0]]], [[[1.0]], [[1.0]]])


def test_scalar_and_vector_of_one_are_different_shapes():
    with pytest.raises(ModelError, match=r"must have shape \(\), got \(1,\)"):
        judged([[np.float32(1)]], [[np.float32([1])]])
