"""``python -m export``: what it writes and reports, its exit codes, and what it refuses without touching a file."""

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_lines import assert_refused, run, snapshot, tiny_mnist
from onnx import numpy_helper
from onnx_models import conv_bn, initializers, operators, text_model
from safetensors.numpy import save_file

import export.cli
import export.proof.runtime
import fastbn
from export.cli import main
from export.fold import fold_graph
from export.verify import verify
from fastbn import models, nn
from fastbn.optim import SGD

PROG = "python -m export"
SHAPE = (2, 6, 6)


def network(seed=0):
    fastbn.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4)
    )
    rng = np.random.default_rng(seed)
    for layer in (model[1], model[5]):
        layer.running_mean[...] = rng.standard_normal(layer.num_features)
        layer.running_var[...] = rng.uniform(0.5, 2, layer.num_features)
        layer.weight.data[...] = rng.standard_normal(layer.num_features)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model of each kind; latencies are not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export.cli, "latencies", lambda models, inputs: [1.0 for _ in models])
    onnx.save(conv_bn(np.random.default_rng(0))[0], "model.onnx")
    fastbn.save(network(), "shaped.safetensors", input_shape=SHAPE)
    fastbn.save(network(), "plain.safetensors")
    return tmp_path


@pytest.fixture
def cli(folder, capsys):
    """(code, stdout, stderr) of a run that must not complain."""

    def call(*arguments):
        code, out, err = run(main, arguments, capsys)
        assert err == "" or err.startswith("training LeNet")
        return code, out, err

    return call


@pytest.fixture
def refused(folder, capsys):
    """The one line of a run that must refuse and change nothing."""
    return lambda *arguments: assert_refused(main, arguments, capsys, folder, PROG)


# What it does


def test_onnx(cli, folder):
    before = snapshot(folder)
    code, out, _ = cli("model.onnx", "-o", "folded.onnx")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert lines["read"] == "model.onnx"
    assert lines["written"] == "folded.onnx (folded)"
    assert lines["folded"] == "1 of 1 batch norms"
    assert re.search("^  y +into Conv c +backward ", out, re.MULTILINE)
    assert lines["nodes"] == "2 -> 1"
    assert lines["parameters"] == "66 -> 57, statistics included"
    assert lines["bytes"] == "264 -> 228"
    assert lines["verified"] == "yes, within 0.0001"
    after = snapshot(folder)
    assert after.keys() - before.keys() == {"folded.onnx"}
    assert {name: after[name] for name in before} == before
    assert operators(onnx.load("folded.onnx")) == ["Conv"]


def test_onnx_json(cli):
    code, out, err = cli("model.onnx", "--json", "--out", "folded.onnx")
    report = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert report["ok"] is True
    assert (report["source"], report["output"], report["unfolded"]) == ("model.onnx", "folded.onnx", None)
    [site] = report["fold"]["sites"]
    assert (site["batch_norm"], site["into"], site["reason"], site["how"]) == ("y", "Conv c", None, "backward")
    assert report["fold"]["before"] == {"nodes": 2, "parameters": 66, "bytes": 264}
    assert report["fold"]["after"] == {"nodes": 1, "parameters": 57, "bytes": 228}
    figures = report["verify"]["unfolded"]
    assert figures["ok"] is True
    assert figures["tolerance"] == 1e-4
    assert 0 < figures["max_rel"] < 1e-5
    assert [entry["output"] for entry in figures["outputs"]] == ["y"]
    assert report["latency_ms"] == {"unfolded": 1.0, "folded": 1.0}
    assert report["latency_unoptimised_ms"] == {}


def test_latency_is_measured(cli, monkeypatch):
    monkeypatch.setattr(export.cli, "latencies", lambda *given: export.proof.runtime.latencies(*given, seconds=0.02))
    _, out, _ = cli("model.onnx", "--json", "-o", "folded.onnx")
    assert all(0 < figure < 1000 for figure in json.loads(out)["latency_ms"].values())


def test_checkpoint_of_a_mobilenet(cli):
    fastbn.manual_seed(0)
    model = models.mobilenet_v2(3, width_mult=0.1)
    fastbn.save(model, "mobilenet.safetensors", input_shape=(3, 32, 32))
    code, out, _ = cli("mobilenet.safetensors", "-o", "mobilenet.onnx", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    assert len(report["fold"]["sites"]) == 52
    assert all(site["into"] for site in report["fold"]["sites"])
    assert "BatchNormalization" not in operators(onnx.load("mobilenet.onnx"))


def test_onnx_without_batch_norm(cli):
    onnx.save(text_model("y = Relu(x)", {}), "relu.onnx")
    code, out, _ = cli("relu.onnx", "-o", "out.onnx")
    assert code == 0
    assert "nothing: the model has no batch norm" in out


def test_onnx_that_keeps_a_batch_norm(cli):
    arrays = {name: np.ones(2, np.float32) for name in "sbmv"}
    onnx.save(text_model("y = BatchNormalization(x, s, b, m, v)", arrays), "kept.onnx")
    code, out, _ = cli("kept.onnx", "-o", "out.onnx")
    assert code == 0
    assert "0 of 1 batch norms" in out
    assert re.search("^  y +kept: nothing comes before it", out, re.MULTILINE)


def test_onnx_no_fold(cli):
    code, out, _ = cli("model.onnx", "-o", "copy.onnx", "--no-fold", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["fold"] is None
    assert report["latency_ms"] == {"unfolded": 1.0}
    assert operators(onnx.load("copy.onnx")) == ["Conv", "BatchNormalization"]
    _, out, _ = cli("model.onnx", "-o", "copy.onnx", "--no-fold")
    assert "copy.onnx (batch norms kept)" in out


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("shaped.safetensors", []),
        ("plain.safetensors", ["--input-shape", "2,6,6"]),
        ("plain.safetensors", ["--input-shape", "1,2,6,6"]),
        ("shaped.safetensors", ["--input-shape", "2,6,6", "--opset", "13", "--tolerance", "1e-3"]),
    ],
)
def test_checkpoint(cli, folder, source, more):
    before = snapshot(folder)
    code, out, err = cli(source, "-o", "out.onnx", "--json", *more)
    report = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert (report["source"], report["output"], report["unfolded"]) == (source, "out.onnx", None)
    assert [site["into"] for site in report["fold"]["sites"]] == ["Conv 0", "Gemm 4"]
    assert report["verify"].keys() == {"fastbn", "unfolded"}
    assert all(figures["ok"] for figures in report["verify"].values())
    after = snapshot(folder)
    assert after.keys() - before.keys() == {"out.onnx"}
    assert {name: after[name] for name in before} == before
    model = onnx.load("out.onnx")
    assert model.opset_import[0].version == (13 if "13" in more else 17)
    np.testing.assert_array_equal(initializers(model)["0.weight"], fastbn.fold(network())[0].weight.data)


def test_input_shape_given_wins_over_the_one_in_the_checkpoint(cli):
    fastbn.save(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), "conv.safetensors", input_shape=SHAPE)
    assert cli("conv.safetensors", "-o", "out.onnx", "--input-shape", "2,9,8")[0] == 0
    [value] = onnx.load("out.onnx").graph.input
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["N", 2, 9, 8]


def test_checkpoint_no_fold(cli):
    code, out, _ = cli("shaped.safetensors", "-o", "out.onnx", "--no-fold", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["fold"] is None
    assert report["verify"]["unfolded"] is None
    assert report["latency_ms"] == {"unfolded": 1.0}
    assert operators(onnx.load("out.onnx")).count("BatchNormalization") == 2


def test_checkpoint_of_fit(cli):
    rng = np.random.default_rng(0)
    data = rng.standard_normal((12, *SHAPE)).astype(np.float32), rng.integers(0, 4, 12)
    model = network()
    fastbn.fit(model, data, epochs=1, optimizer=SGD(model.parameters(), lr=0.1), checkpoint="fit.safetensors")
    code, out, _ = cli("fit.safetensors", "-o", "out.onnx", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    np.testing.assert_array_equal(initializers(onnx.load("out.onnx"))["0.weight"], fastbn.fold(model)[0].weight.data)


def fold_wrongly(model, **how):
    """The fold, and then a tenth more of every weight."""
    report = fold_graph(model, **how)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.1), name=value.name)
    return report


@pytest.mark.parametrize("source", ["model.onnx", "shaped.safetensors"])
def test_differing_outputs_exit_with_1_and_are_written(cli, monkeypatch, source):
    for module in (export.cli, importlib.import_module("export.convert")):
        monkeypatch.setattr(module, "fold_graph", fold_wrongly)
    code, out, _ = cli(source, "-o", "out.onnx")
    assert code == 1
    assert "NO: the outputs differ by more than 0.0001" in out
    assert re.search(r"differs at +\S", out)
    assert operators(onnx.load("out.onnx")).count("BatchNormalization") == 0
    code, out, _ = cli(source, "-o", "out.onnx", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_more_exact_than_the_source_is_verified(cli):
    """The source loses more than the tolerance, the folded model does not."""
    arrays = initializers(onnx.load("model.onnx"))
    arrays |= {"d": np.full(3, 1e3, np.float32), "m": np.full(3, 1e3, np.float32), "v": np.full(3, 1e-5, np.float32)}
    arrays["W"] = arrays["W"] * np.float32(1e-3)
    onnx.save(text_model("c = Conv(x, W, d) y = BatchNormalization(c, s, b, m, v)", arrays), "cancels.onnx")
    code, out, _ = cli("cancels.onnx", "-o", "out.onnx")
    assert code == 0
    assert "verified      yes: as near to float64 as the source" in out
    errors = r"rel (\S+) of the source, (\S+) of the written model, against float64"
    source, folded = re.search(errors, out).groups()
    assert float(source) > 1e-3 > 1e-5 > float(folded)


def test_proof_on_data(cli, folder, monkeypatch):
    x = np.random.default_rng(0).standard_normal((20, *SHAPE))
    np.savez("data.npz", x=x)
    ran = []
    monkeypatch.setattr(
        export.cli, "verify", lambda *given, **options: ran.append(given[2]) or verify(*given, **options)
    )
    code, out, _ = cli("model.onnx", "-o", "out.onnx", "--data", "data.npz", "--json")
    assert code == 0
    assert json.loads(out)["verify"]["unfolded"]["inputs"] == 3
    np.testing.assert_array_equal(np.concatenate([arrays["x"] for arrays in ran[0]]), x.astype(np.float32))


def test_optimiser_that_changes_the_answer_is_said(cli):
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((4, 4)).astype(np.float32), **{name: rng.uniform(1, 2, 4) for name in "sbmv"}}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    body = "p = MatMul(x, W) c = Transpose <perm=[1,0]> (p) y = BatchNormalization(c, s, b, m, v)"
    onnx.save(text_model(body, arrays, x="float[4, 4] x"), "traps.onnx")
    code, out, _ = cli("traps.onnx", "-o", "out.onnx")
    assert code == 0
    said = "onnxruntime's own optimiser changes the source" in out
    _, out, _ = cli("traps.onnx", "-o", "out.onnx", "--json")
    optimised = json.loads(out)["verify"]["unfolded"]["optimised"]
    assert [entry["model"] for entry in optimised] == ["reference", "candidate"]
    assert said is not optimised[0]["ok"]


def test_suffix_in_capitals_and_a_target_that_exists(cli, folder):
    (folder / "model.onnx").rename("MODEL.ONNX")
    (folder / "out.onnx").write_text("what was there before")
    code, _, _ = cli("MODEL.ONNX", "-o", "out.onnx")
    assert code == 0
    assert operators(onnx.load("out.onnx")) == ["Conv"]


def test_help_names_the_exit_codes(capsys):
    code, out, err = run(main, ["--help"], capsys)
    assert (code, err) == (0, "")
    for text in ("0 verified", "1 the outputs differ", "2 bad arguments or a bad file", "--no-fold", "SOURCE"):
        assert text in out


# Training


@pytest.fixture
def mnist(folder, monkeypatch, tmp_path_factory):
    """48 + 16 random digits for --data mnist."""
    monkeypatch.setenv("FASTBN_DATA", str(tiny_mnist(tmp_path_factory.mktemp("data"))))


@pytest.mark.usefixtures("mnist")
def test_training(cli, folder):
    before = snapshot(folder)
    code, out, err = cli("--data", "mnist", "--epochs", "1", "--json")
    assert code == 0
    assert out.count("\n") == 1
    assert err == "training LeNet with batch norm on mnist, 1 epochs\n"
    report = json.loads(out)
    assert snapshot(folder).keys() - before.keys() == {"lenet.onnx", "lenet.unfolded.onnx", "lenet.safetensors"}
    assert (report["output"], report["unfolded"]) == ("lenet.onnx", "lenet.unfolded.onnx")
    assert report["checkpoint"] == "lenet.safetensors"
    assert report["fold"]["before"] == {"nodes": 16, "parameters": 45330, "bytes": 181320}
    assert report["fold"]["after"] == {"nodes": 12, "parameters": 44426, "bytes": 177704}
    assert report["test_samples"] == 16
    assert report["training"].keys() == {"data", "epochs", "seconds", "test_accuracy"}
    [accuracy] = {*report["accuracy"].values(), report["training"]["test_accuracy"]}
    assert accuracy in {hits / 16 for hits in range(17)}
    assert report["accuracy"].keys() == {"fastbn", "unfolded", "folded"}
    assert operators(onnx.load("lenet.unfolded.onnx")).count("BatchNormalization") == 4
    assert operators(onnx.load("lenet.onnx")).count("BatchNormalization") == 0
    code, out, _ = cli("lenet.safetensors", "-o", "again.onnx", "--json")
    assert code == 0
    assert onnx.load("again.onnx") == onnx.load("lenet.onnx")


@pytest.mark.usefixtures("mnist")
def test_training_as_text(cli):
    code, out, _ = cli("--data", "mnist", "--epochs", "2", "--seed", "3", "-o", "net.onnx")
    assert code == 0
    for text in ("LeNet-BN on mnist, 2 epochs", "net.onnx (folded)", "net.unfolded.onnx", "4 of 4 batch norms"):
        assert text in out
    assert "45,330 -> 44,426" in out
    assert "(16 test samples)" in out


@pytest.mark.usefixtures("mnist")
def test_training_no_fold(cli, folder):
    before = snapshot(folder)
    code, out, _ = cli("--data", "mnist", "--epochs", "1", "--no-fold", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["fold"] is report["unfolded"] is report["verify"]["unfolded"] is None
    assert report["accuracy"].keys() == {"fastbn", "unfolded"}
    assert snapshot(folder).keys() - before.keys() == {"lenet.onnx", "lenet.safetensors"}
    assert operators(onnx.load("lenet.onnx")).count("BatchNormalization") == 4


@pytest.mark.usefixtures("mnist")
def test_training_is_repeatable(cli):
    for name in ("one", "two"):
        assert cli("--data", "mnist", "--epochs", "1", "--seed", "5", "-o", f"{name}.onnx")[0] == 0
    assert cli("--data", "mnist", "--epochs", "1", "--seed", "6", "-o", "three.onnx")[0] == 0
    contents = [Path(f"{name}.onnx").read_bytes() for name in ("one", "two", "three")]
    assert contents[0] == contents[1] != contents[2]


def test_as_a_process(tmp_path):
    """The command as the README gives it, on scikit-learn's digits."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "export", "--epochs", "1", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "training LeNet with batch norm on digits, 1 epochs\n"
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["accuracy"]["folded"] > 0.2  # one epoch; a guess is right once in ten
    assert report["test_samples"] == 360
    assert all(0 < figure < 1000 for figure in report["latency_ms"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"lenet.onnx", "lenet.unfolded.onnx", "lenet.safetensors"}
    assert isinstance(fastbn.load(tmp_path / "lenet.safetensors"), nn.Sequential)


# What it refuses


BAD_ARGUMENTS = {
    "wrong suffix": (["model.txt", "-o", "out.onnx"], r"must end in .onnx or .safetensors, got model.txt"),
    "no suffix": (["model", "-o", "out.onnx"], r"must end in .onnx or .safetensors, got model"),
    "empty SOURCE": (["", "-o", "out.onnx"], "must end in .onnx or .safetensors"),
    "missing .onnx": (["nowhere.onnx", "-o", "out.onnx"], "must be a file that exists, got nowhere.onnx"),
    "missing .safetensors": (["nowhere.safetensors", "-o", "out.onnx"], "must be a file that exists"),
    "a folder as SOURCE": (["folder.onnx", "-o", "out.onnx"], "must be a file that exists, got folder.onnx"),
    "no OUT": (["model.onnx"], "-o OUT.onnx must be given"),
    "empty OUT": (["model.onnx", "-o", ""], "OUT|-o"),
    "OUT in a missing folder": (["model.onnx", "-o", "nowhere/out.onnx"], "must be in a folder that exists"),
    "OUT below a file": (["model.onnx", "-o", "plain.safetensors/out.onnx"], "must be in a folder that exists"),
    "OUT is a folder": (["model.onnx", "-o", "folder.onnx"], "must be a file, got a folder"),
    "OUT is the current folder": (["model.onnx", "-o", "."], "must be a file, got a folder"),
    "OUT of another suffix": (["model.onnx", "-o", "out.safetensors"], "OUT must end in .onnx"),
    "OUT is a checkpoint that exists": (["model.onnx", "-o", "plain.safetensors"], "OUT must end in .onnx"),
    "OUT is SOURCE": (["model.onnx", "-o", "model.onnx"], "OUT must be another file than SOURCE"),
    "OUT is SOURCE, another way": (["model.onnx", "-o", "folder.onnx/../model.onnx"], "another file than SOURCE"),
    "OUT links to SOURCE": (["model.onnx", "-o", "link.onnx"], "another file than SOURCE"),
    "OUT is the checkpoint": (["plain.safetensors", "-o", "plain.safetensors"], "another file than SOURCE"),
    "--data of another kind": (
        ["model.onnx", "-o", "out.onnx", "--data", "digits"],
        "must be an .npz, an .npy or a folder",
    ),
    "--data that is missing": (["model.onnx", "-o", "out.onnx", "--data", "no.npz"], "got no such file"),
    "--data that is no image": (["model.onnx", "-o", "out.onnx", "--data", "folder.onnx"], "must hold images"),
    "--data with a checkpoint": (["plain.safetensors", "-o", "out.onnx", "--data", "d.npz"], "with an .onnx SOURCE"),
    "--epochs with SOURCE": (["model.onnx", "-o", "out.onnx", "--epochs", "1"], "--epochs must come without SOURCE"),
    "--seed with SOURCE": (["shaped.safetensors", "-o", "out.onnx", "--seed", "0"], "--seed must come without SOURCE"),
    "--opset with .onnx": (["model.onnx", "-o", "out.onnx", "--opset", "17"], "must come with a fastbn model"),
    "--input-shape with .onnx": (["model.onnx", "-o", "out.onnx", "--input-shape", "2,6,6"], "must come with a fastbn"),
    "no --input-shape": (["plain.safetensors", "-o", "out.onnx"], "--input-shape must be given"),
    "--input-shape with other channels": (["plain.safetensors", "-o", "out.onnx", "--input-shape", "3,6,6"], "got"),
    "--input-shape too small": (["plain.safetensors", "-o", "out.onnx", "--input-shape", "2,2,2"], "got"),
    "--input-shape of another size": (["plain.safetensors", "-o", "out.onnx", "--input-shape", "2,7,7"], "got"),
    "--input-shape without channels": (["plain.safetensors", "-o", "out.onnx", "--input-shape", "36"], "got"),
    "--opset too old": (["shaped.safetensors", "-o", "out.onnx", "--opset", "9"], "opset must be an integer from 10"),
    "--opset too new": (["shaped.safetensors", "-o", "out.onnx", "--opset", "999"], "opset must be an integer from 10"),
    "two sources": (["model.onnx", "plain.safetensors", "-o", "out.onnx"], "unrecognized arguments"),
    "unknown option": (["--nonsense"], "unrecognized arguments: --nonsense"),
    "unknown option of two lines": (["--non\nsense"], "unrecognized arguments"),
    "-o without a value": (["model.onnx", "-o"], "expected one argument"),
    "unknown data": (["--data", "cifar"], "--data must be digits or mnist without SOURCE, .*got 'cifar'"),
    **{
        f"{option} {value!r}": ([option, value], f"{option}: (must be .*, got {value!r}|expected one argument)")
        for option, values in {
            "--epochs": ("0", "-1", "1.5", "ten", ""),
            "--seed": ("-1", "x", "1e3"),
            "--opset": ("0", "-3", "17.0"),
            "--tolerance": ("-1e-9", "nan", "inf", "-inf", "small", ""),
            "--input-shape": ("", "3x4", "1,28,", "1,0,28", "1,-28,28", "1.0,28", ","),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(refused, folder, case):
    arguments, sentence = BAD_ARGUMENTS[case]
    (folder / "folder.onnx").mkdir()
    (folder / "link.onnx").symlink_to("model.onnx")
    (folder / "model.txt").write_text("text")
    line = refused(*arguments)
    assert re.search(sentence, line), line


def text():
    return b"# not a model\nprint('hello')\n" * 20


def onnx_bytes(change=lambda model: None):
    model = conv_bn(np.random.default_rng(0))[0]
    change(model)
    return model.SerializeToString()


def checkpoint_bytes():
    fastbn.save(network(), "made.safetensors", input_shape=SHAPE)
    content = Path("made.safetensors").read_bytes()
    Path("made.safetensors").unlink()
    return content


def safetensors_bytes(metadata, arrays=None):
    save_file(arrays or {":none": np.zeros(1, np.float32)}, "made.safetensors", metadata=metadata)
    content = Path("made.safetensors").read_bytes()
    Path("made.safetensors").unlink()
    return content


def claiming(model, extra=None):
    """A checkpoint of our format that says it is ``model``."""
    extra = {"input_shape": [3]} if extra is None else extra
    return safetensors_bytes({"format": "fastbn.v1", "model": json.dumps(model), "extra": json.dumps(extra)})


def unknown_dtype():
    """One tensor of eight-bit floats, which NumPy does not have."""
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"12"


RELU = {"type": "ReLU", "options": {}}

BAD_FILES = {
    "text": (".onnx", text),
    "empty": (".onnx", bytes),
    "zeros": (".onnx", lambda: bytes(500)),
    "random": (".onnx", lambda: np.random.default_rng(0).bytes(500)),
    "truncated": (".onnx", lambda: onnx_bytes()[:-100]),
    "halved": (".onnx", lambda: onnx_bytes()[: len(onnx_bytes()) // 2]),
    "a checkpoint": (".onnx", checkpoint_bytes),
    "unknown operator": (
        ".onnx",
        lambda: onnx_bytes(lambda model: setattr(model.graph.node[0], "op_type", "Nonsense")),
    ),
    "batch norm without variance": (".onnx", lambda: onnx_bytes(lambda model: model.graph.node[1].input.pop())),
    "convolution without weight": (".onnx", lambda: onnx_bytes(lambda model: model.graph.node[0].input.pop())),
    "scale of another size": (
        ".onnx",
        lambda: onnx_bytes(
            lambda model: model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "s"))
        ),
    ),
    "weight of too few bytes": (
        ".onnx",
        lambda: onnx_bytes(lambda model: setattr(model.graph.initializer[0], "raw_data", b"1234")),
    ),
    "text, too": (".safetensors", text),
    "empty, too": (".safetensors", bytes),
    "a few bytes": (".safetensors", lambda: checkpoint_bytes()[:7]),
    "a part of the header": (".safetensors", lambda: checkpoint_bytes()[:100]),
    "all but the last byte": (".safetensors", lambda: checkpoint_bytes()[:-1]),
    "a byte too many": (".safetensors", lambda: checkpoint_bytes() + b"0"),
    "a pickle": (".safetensors", lambda: pickle.dumps({"0.weight": np.ones(3)})),
    "an ONNX model": (".safetensors", onnx_bytes),
    "foreign": (".safetensors", lambda: safetensors_bytes(None, {"0.weight": np.ones(3, np.float32)})),
    "foreign with metadata": (".safetensors", lambda: safetensors_bytes({"format": "pt"})),
    "of another version": (".safetensors", lambda: safetensors_bytes({"format": "fastbn.v9"})),
    "of a dtype that NumPy lacks": (".safetensors", unknown_dtype),
    "without a model": (".safetensors", lambda: safetensors_bytes({"format": "fastbn.v1", "extra": "{}"})),
    "without extra": (".safetensors", lambda: safetensors_bytes({"format": "fastbn.v1", "model": json.dumps(RELU)})),
    "model that is no JSON": (
        ".safetensors",
        lambda: safetensors_bytes({"format": "fastbn.v1", "model": "{", "extra": "{}"}),
    ),
    "model that is a list": (".safetensors", lambda: claiming([])),
    "model of no options": (".safetensors", lambda: claiming({"type": "ReLU"})),
    "layer of another name": (".safetensors", lambda: claiming({"type": "os.system", "options": {}})),
    "layer that is no layer": (".safetensors", lambda: claiming({"type": "Module", "options": {}})),
    "layer that is a base": (".safetensors", lambda: claiming({"type": "BatchNorm", "options": {"num_features": 3}})),
    "options of another layer": (".safetensors", lambda: claiming({"type": "ReLU", "options": {"slope": 1}})),
    "arrays missing": (
        ".safetensors",
        lambda: claiming({"type": "Linear", "options": {"in_features": 3, "out_features": 2}}),
    ),
    "layer larger than memory": (
        ".safetensors",
        lambda: claiming({"type": "Linear", "options": {"in_features": 10**6, "out_features": 10**7}}),
    ),
    "extra that is a list": (".safetensors", lambda: claiming(RELU, [])),
    "extra that is null": (
        ".safetensors",
        lambda: safetensors_bytes({"format": "fastbn.v1", "model": json.dumps(RELU), "extra": "null"}),
    ),
    "input_shape that is a number": (".safetensors", lambda: claiming(RELU, {"input_shape": 3})),
    "input_shape that is text": (".safetensors", lambda: claiming(RELU, {"input_shape": "abc"})),
    "input_shape of fractions": (".safetensors", lambda: claiming(RELU, {"input_shape": [1.5]})),
    "input_shape larger than memory": (".safetensors", lambda: claiming(RELU, {"input_shape": [10**8, 10**8]})),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(refused, folder, case):
    suffix, make = BAD_FILES[case]
    (folder / f"bad{suffix}").write_bytes(make())
    line = refused(f"bad{suffix}", "-o", "out.onnx")
    assert "must" in line
    assert "got" in line


def test_weights_in_another_file_that_is_gone(refused, folder):
    model = conv_bn(np.random.default_rng(0))[0]
    onnx.save(model, "outside.onnx", save_as_external_data=True, size_threshold=0, location="outside.data")
    (folder / "outside.data").unlink()
    refused("outside.onnx", "-o", "out.onnx")


def test_weights_in_another_file_and_another_folder(cli, folder):
    model = conv_bn(np.random.default_rng(0))[0]
    onnx.save(model, "outside.onnx", save_as_external_data=True, size_threshold=0, location="outside.data")
    (folder / "to").mkdir()
    before = snapshot(folder)
    code, _, _ = cli("outside.onnx", "-o", "to/out.onnx", "--no-fold")
    assert code == 0
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before


def test_onnx_with_free_height_and_width(cli):
    """As exporters write them; a window of 3 x 3 needs more than 1 x 1."""
    arrays = {"W": np.ones((3, 2, 3, 3), np.float32), **{name: np.ones(3, np.float32) for name in "sbmv"}}
    body = "c = Conv(x, W) y = BatchNormalization(c, s, b, m, v)"
    onnx.save(text_model(body, arrays, x="float[N, 2, H, W_] x"), "free.onnx")
    code, _, _ = cli("free.onnx", "-o", "out.onnx")
    assert code == 0


TRAINING_REFUSED = {
    "opset": (["--opset", "9"], "opset must be an integer from 10"),
    "OUT in a missing folder": (["-o", "nowhere/out.onnx"], "must be in a folder that exists"),
    "OUT where the checkpoint goes": (["-o", "net.safetensors"], "OUT must end in .onnx"),
    "a folder where the checkpoint goes": (["-o", "taken.onnx"], "taken.safetensors must be a file, got a folder"),
    "an input shape": (["--input-shape", "3,4,5"], "--input-shape"),
    "data": (["--data", "mnist"], "must hold train-images-idx3-ubyte"),
}


@pytest.mark.parametrize("case", TRAINING_REFUSED)
def test_training_refused_before_it_begins(refused, folder, mnist, monkeypatch, case):
    arguments, sentence = TRAINING_REFUSED[case]
    (folder / "taken.safetensors").mkdir()
    if case == "data":
        monkeypatch.setenv("FASTBN_DATA", str(folder / "nowhere"))
    line = refused("--data", "mnist", "--epochs", "1", *arguments)
    assert re.search(sentence, line), line


@pytest.mark.usefixtures("mnist")
def test_newest_opset_works_or_leaves_nothing(folder, capsys):
    """onnx may know an opset that onnxruntime cannot run yet: that must show before the training, not after."""
    arguments = ["--data", "mnist", "--epochs", "1", "--opset", str(onnx.defs.onnx_opset_version())]
    before = snapshot(folder)
    code, _, err = run(main, arguments, capsys)
    assert code in (0, 2)
    if code == 2:
        assert err.count("\n") == 1
        assert snapshot(folder) == before


@pytest.mark.parametrize("what", ["input", "output"])
def test_nothing_but_one_line_from_a_process(folder, what):
    """What the libraries below log goes to stderr as well, unless it is kept from there."""
    model = conv_bn(np.random.default_rng(0))[0]
    if what == "input":
        model.graph.node[0].input[0] = "nowhere"
    else:
        model.graph.output[0].name = "nowhere"
    onnx.save(model, "dangling.onnx")
    before = snapshot(folder)
    done = subprocess.run(
        [sys.executable, "-m", "export", "dangling.onnx", "-o", "out.onnx"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(PROG)
    assert done.stderr.count("\n") == 1
    assert snapshot(folder) == before


@pytest.fixture
def crashing_child(monkeypatch, tmp_path_factory):
    """onnxruntime dies on every model."""
    child = tmp_path_factory.mktemp("child") / "child.py"
    child.write_text("import os\nos.kill(os.getpid(), 11)")
    monkeypatch.setattr(export.proof.runtime, "CHILD", child)


@pytest.mark.usefixtures("crashing_child")
def test_crash_of_onnxruntime(refused):
    assert "got a crash (signal 11)" in refused("shaped.safetensors", "-o", "out.onnx")


@pytest.mark.usefixtures("crashing_child")
def test_crash_of_onnxruntime_on_a_model_that_the_referee_can_run(cli):
    code, out, _ = cli("model.onnx", "-o", "out.onnx")
    assert code == 0
    assert "onnxruntime cannot run the source (a crash (signal 11)): both were run by onnx's evaluator" in out
    assert "against float64" in out


@pytest.mark.parametrize("source", ["model.onnx", "shaped.safetensors"])
def test_a_latency_that_cannot_be_measured_is_no_failure(folder, capsys, monkeypatch, source):
    """Latencies are measured with the optimiser on, which can fail where the proof did not."""

    def fail(models, inputs):
        raise fastbn.errors.ModelError("verify: onnxruntime must be able to run the model, got a crash")

    monkeypatch.setattr(export.cli, "latencies", fail)
    assert export.cli.main([source, "-o", "out.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "verified      yes" in out
    assert "latency" not in out
    assert "latency not measured: verify: onnxruntime must" in err


def test_interruption(folder, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(export.cli, "verify", interrupt)
    before = snapshot(folder)
    assert run(main, ["model.onnx", "-o", "out.onnx"], capsys) == (130, "", f"{PROG}: interrupted\n")
    assert snapshot(folder) == before
