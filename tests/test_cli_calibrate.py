"""``python -m export --calibrate`` and ``--undo``: what they write and report, and what they refuse."""

import json
import re
import sys
import zipfile

import numpy as np
import onnx
import pytest
from command_lines import assert_refused, run, snapshot
from onnx import helper
from onnx_models import conv_bn, initializers, operators, run_onnxruntime, text_model
from onnx_models import statistics as random_statistics

import export.cli
import fastbn
from export import calibrate
from export.calibration.adapt import render_calibration
from export.cli import main
from fastbn import nn
from fastbn._progress import Bar

PROG = "python -m export"


def data(count=20, seed=1):
    return 3 + 2 * np.random.default_rng(seed).standard_normal((count, 2, 6, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model and its data; latencies are not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export.cli, "latencies", lambda models, inputs: [1.0 for _ in models])
    onnx.save(conv_bn(np.random.default_rng(0))[0], "model.onnx")
    np.savez("data.npz", x=data(), labels=np.arange(20))
    np.save("data.npy", data())
    return tmp_path


@pytest.fixture
def cli(folder, capsys):
    """(code, stdout) of a run that must not complain."""

    def call(*arguments):
        code, out, err = run(main, arguments, capsys)
        assert err == ""
        return code, out

    return call


@pytest.fixture
def refused(folder, capsys):
    """The one line of a run that must refuse and change nothing."""
    return lambda *arguments: assert_refused(main, arguments, capsys, folder, PROG)


# What they do


@pytest.mark.parametrize("source", ["data.npz", "data.npy"])
def test_calibrated_folded_and_verified(cli, folder, source):
    before = snapshot(folder)
    code, out = cli("model.onnx", "--calibrate", source, "-o", "out.onnx", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    after = snapshot(folder)
    assert after.keys() - before.keys() == {"out.onnx", "out.unfolded.onnx", "out.undo.safetensors"}
    assert {name: after[name] for name in before} == before
    assert operators(onnx.load("out.onnx")) == ["Conv"]
    want = calibrate("model.onnx", [data()])
    assert onnx.load("out.unfolded.onnx") == want
    x = data(3, seed=2)
    got, true = (run_onnxruntime(model, {"x": x})[0] for model in ("out.onnx", want))
    np.testing.assert_allclose(got, true, rtol=1e-5, atol=1e-5 * np.abs(true).max())
    names = ("source", "output", "unfolded", "undo")
    assert [report[name] for name in names] == ["model.onnx", "out.onnx", "out.unfolded.onnx", "out.undo.safetensors"]
    calibration = report["calibration"]
    assert {name: calibration[name] for name in ("data", "samples", "left_out", "batches", "mode")} == {
        "data": source,
        "samples": 20,
        "left_out": 0,
        "batches": 1,
        "mode": "layers",
    }
    [layer] = calibration["layers"]
    assert (layer["batch_norm"], layer["channels"], layer["values"], layer["reason"]) == ("y", 3, 320, None)


def test_text(cli):
    code, out = cli("model.onnx", "--calibrate", "data.npz", "-o", "out.onnx", "--calibration-mode", "once")
    assert code == 0
    for text in (
        "out.onnx (folded)",
        "out.unfolded.onnx (unfolded)",
        "out.undo.safetensors (the old statistics)",
        "calibrated    1 of 1 batch norms, in one pass",
        "20 samples of data.npz in 1 batches",
        "moved most      y: mean by",
        "1 of 1 batch norms",
        "verified      yes",
    ):
        assert text in out


def test_what_many_batch_norms_have_in_common_is_said_once():
    layer = {"mean_shift": None, "var_ratio": 0.5, "recovers": "so", "reason": None, "constant": 2}
    layers = [{"batch_norm": f"n{i}", **layer, "mean_shift": i or None} for i in range(5)]
    layers.append({"batch_norm": "z", **layer, "recovers": None, "reason": "not so", "constant": 0})
    head = {"mode": "once", "samples": 1200, "data": "d.npy", "batches": 19, "left_out": 0, "layers": layers}
    assert render_calibration(head, worst=2) == [
        ("calibrated", "5 of 6 batch norms, in one pass"),
        ("", "1,200 samples of d.npy in 19 batches"),
        ("moved most", "  n0: mean by unknown, variance x 0.5"),
        ("", "  n4: mean by 4 old deviations, variance x 0.5"),
        ("", "  recovered: n0, n1, n2 and 2 more: so"),
        ("", "  left as it is: z: not so"),
        ("", "  without variance: 10 channels of n0, n1, n2 and 2 more"),
    ]


def test_batch_size_does_not_matter(cli):
    for size, name in ((7, "one"), (20, "two")):
        assert cli("model.onnx", "--calibrate", "data.npy", "--batch-size", size, "-o", f"{name}.onnx")[0] == 0
    one, two = (initializers(onnx.load(f"{name}.unfolded.onnx")) for name in ("one", "two"))
    for name in "mv":
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


def test_no_fold(cli, folder):
    before = snapshot(folder)
    code, out = cli("model.onnx", "--calibrate", "data.npy", "-o", "out.onnx", "--no-fold", "--json")
    report = json.loads(out)
    assert (code, report["unfolded"]) == (0, None)
    assert snapshot(folder).keys() - before.keys() == {"out.onnx", "out.undo.safetensors"}
    assert onnx.load("out.onnx") == calibrate("model.onnx", [data()])


def test_undo(cli, folder):
    cli("model.onnx", "--calibrate", "data.npy", "-o", "out.onnx")
    before = snapshot(folder)
    code, out = cli("out.unfolded.onnx", "--undo", "out.undo.safetensors", "-o", "back.onnx")
    assert code == 0
    assert out.splitlines()[-1] == "restored      1 batch norms have their statistics of out.undo.safetensors"
    assert snapshot(folder).keys() - before.keys() == {"back.onnx"}
    assert initializers(onnx.load("back.onnx"))["v"].tobytes() == initializers(onnx.load("model.onnx"))["v"].tobytes()
    code, out = cli("out.unfolded.onnx", "--undo", "out.undo.safetensors", "-o", "back.onnx", "--json")
    assert json.loads(out)["restored"] == 1


def test_a_batch_norm_in_training_mode_becomes_foldable(cli):
    model = onnx.load("model.onnx")
    model.graph.node[1].output.extend(["running_mean", "running_var"])
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    onnx.save(model, "training.onnx")
    code, out = cli("training.onnx", "--calibrate", "data.npy", "-o", "out.onnx")
    assert code == 0
    assert "recovered: y: it was in training mode" in out
    assert operators(onnx.load("out.onnx")) == ["Conv"]


def test_a_fixed_batch_leaves_samples_out_and_says_so(cli):
    onnx.save(text_model("y = BatchNormalization(x, s, b, m, v)", statistics(2), x="float[8, 2, 6, 6] x"), "fixed.onnx")
    _, out = cli("fixed.onnx", "--calibrate", "data.npy", "-o", "out.onnx")
    assert "16 samples of data.npy in 2 batches" in out
    assert "4 samples left out: too few for the model's fixed batch" in out


def test_a_folder_of_images(cli, folder):
    images = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(2).integers(0, 256, (5, 6, 6, 3), np.uint8)
    (folder / "images").mkdir()
    for index, image in enumerate(pixels):
        images.fromarray(image).save(folder / "images" / f"{index}.png")
    arrays = statistics(3)
    onnx.save(text_model("y = BatchNormalization(x, s, b, m, v)", arrays, x="float[N, 3, 6, 6] x"), "image.onnx")
    code, out = cli("image.onnx", "--calibrate", "images", "--batch-size", "2", "-o", "out.onnx")
    assert code == 0
    assert "5 samples of images in 3 batches" in out
    mean = initializers(onnx.load("out.unfolded.onnx"))["m"]
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)) / 255, rtol=1e-5)


def test_statistics_that_the_caller_may_override(cli, folder):
    model = onnx.load("model.onnx")
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, "open.onnx")
    _, out = cli("open.onnx", "--calibrate", "data.npy", "-o", "kept.onnx")
    assert "its mean can be given by the caller" in out
    assert operators(onnx.load("kept.onnx")) == ["Conv", "BatchNormalization"]
    code, out = cli("open.onnx", "--calibrate", "data.npy", "-o", "out.onnx", "--allow-overridable", "--json")
    assert code == 0
    assert json.loads(out)["fold"]["sites"][0]["into"]
    assert operators(onnx.load("out.onnx")) == ["Conv"]
    got, want = (initializers(one) for one in (onnx.load("out.unfolded.onnx"), calibrate("model.onnx", [data()])))
    np.testing.assert_array_equal(got["m"], want["m"])
    cli("out.unfolded.onnx", "--undo", "out.undo.safetensors", "-o", "back.onnx")
    assert onnx.load("back.onnx") == model


def test_no_batch_norm(cli, folder):
    onnx.save(text_model("y = Relu(x)", {}), "relu.onnx")
    before = snapshot(folder)
    code, out = cli("relu.onnx", "--calibrate", "data.npy", "-o", "out.onnx")
    assert code == 0
    assert "calibrated    0 of 0 batch norms" in out
    assert "nothing: the model has no batch norm" in out
    assert snapshot(folder).keys() - before.keys() <= {"out.onnx"}


def statistics(channels):
    return random_statistics(np.random.default_rng(0), channels)


# What they refuse


def pickled(path):
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def truncated(path):
    np.save(path, data())
    path.write_bytes(path.read_bytes()[:-100])


def not_an_array(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"hello")


def infinite(path):
    np.save(path, np.full((4, 2, 6, 6), np.inf, np.float32))


FILES = {
    "d.txt": (lambda path: path.write_text("1 2 3"), "must be an .npz, an .npy or a folder of images, got d.txt"),
    "missing.npz": (lambda path: None, "got no such file"),
    "empty.npy": (lambda path: path.write_bytes(b""), "must be arrays of numbers that NumPy can read, got"),
    "text.npz": (lambda path: path.write_text("hello"), "must be arrays of numbers that NumPy can read, got"),
    "pickled.npy": (pickled, "must be arrays of numbers that NumPy can read, got"),
    "truncated.npy": (truncated, "must be arrays of numbers that NumPy can read, got"),
    "inside.npz": (not_an_array, "must be arrays of numbers that NumPy can read, got x, which is no array"),
    "other.npy": (lambda path: np.save(path, np.ones((3, 5))), r"must have the shape \(N, 2, 6, 6\), got \(3, 5\)"),
    "infinite.npy": (infinite, "the input of batch norm y must be finite, got NaN or infinity in channel 0 of batch 0"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_data(refused, folder, name):
    make, sentence = FILES[name]
    make(folder / name)
    line = refused("model.onnx", "--calibrate", name, "-o", "out.onnx")
    assert re.search(sentence, line), line


BAD = {
    "without SOURCE": (["--calibrate", "data.npy"], "--calibrate must come with an .onnx SOURCE, got none"),
    "with a checkpoint": (["net.safetensors", "--calibrate", "data.npy", "-o", "o.onnx"], "must come with an .onnx"),
    "undo without SOURCE": (["--undo", "out.undo.safetensors"], "--undo must come with an .onnx SOURCE, got none"),
    "both": (["model.onnx", "--calibrate", "data.npy", "--undo", "f", "-o", "o.onnx"], "must come without --calibrate"),
    "dry run": (["model.onnx", "--calibrate", "data.npy", "--dry-run"], "--dry-run must come without --calibrate"),
    "undo with a page": (
        ["model.onnx", "--undo", "f", "-o", "o.onnx", "--report", "r.html"],
        "must come without --report",
    ),
    "mode alone": (["model.onnx", "-o", "o.onnx", "--calibration-mode", "once"], "must come with --calibrate, got it"),
    "size alone": (["model.onnx", "-o", "o.onnx", "--batch-size", "8"], "--batch-size must come with --calibrate"),
    "no size": (["model.onnx", "--calibrate", "data.npy", "-o", "o.onnx", "--batch-size", "0"], "must be an integer"),
    "no such mode": (["model.onnx", "--calibrate", "data.npy", "-o", "o.onnx", "--calibration-mode", "x"], "invalid"),
    "missing undo file": (["model.onnx", "--undo", "nowhere", "-o", "o.onnx"], "nowhere must be a file, got no file"),
    "data as undo file": (["model.onnx", "--undo", "data.npz", "-o", "o.onnx"], "must be an undo file that calibrate"),
    "twin is SOURCE": (["o.unfolded.onnx", "--calibrate", "data.npy", "-o", "o.onnx"], "unfolded twin"),
    "undo is a folder": (["model.onnx", "--calibrate", "data.npy", "-o", "d.onnx"], "must be a file, got a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(refused, folder, case):
    arguments, sentence = BAD[case]
    onnx.save(onnx.load("model.onnx"), "o.unfolded.onnx")
    (folder / "d.undo.safetensors").mkdir()
    fastbn.save(nn.Sequential(nn.Conv2d(2, 3, 3)), "net.safetensors", input_shape=(2, 6, 6))
    line = refused(*arguments)
    assert re.search(sentence, line), line


def test_folded_model_cannot_be_restored(cli, refused):
    cli("model.onnx", "--calibrate", "data.npy", "-o", "out.onnx")
    line = refused("out.onnx", "--undo", "out.undo.safetensors", "-o", "back.onnx")
    assert "got none of that output; a folded model cannot be restored, give the unfolded one" in line


# The bar


class Terminal:
    def __init__(self, stream):
        self._stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.mark.parametrize(("wanted", "terminal"), [(True, True), (True, False), (False, True)])
def test_bar_is_for_a_person_at_a_terminal(wanted, terminal, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with Bar("stage 1/2", "batches", 6, wanted=wanted) as bar:
        bar.say("stage 2/2")
        bar.advance()
    shown = capsys.readouterr().err
    assert bool(shown) == (wanted and terminal)
    assert ("stage 2/2" in shown) == (wanted and terminal)
    assert ("1/6" in shown) == (wanted and terminal)
