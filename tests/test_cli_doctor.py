"""``python -m fastbn doctor``: what it prints, its exit codes, its data, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_lines import assert_refused, run, tiny_mnist

import fastbn
from fastbn import nn
from fastbn.cli.main import main
from fastbn.training import checkpoint

SHAPE = (2, 4, 4)


def network(channels=2, size=4):
    """A model whose statistics are those of standard normal inputs."""
    fastbn.manual_seed(0)
    rng = np.random.default_rng(0)
    norm = nn.BatchNorm2d(channels)
    norm.running_mean[...] = rng.normal(0, 1e-3, channels)
    norm.running_var[...] = rng.uniform(0.999, 1.001, channels)
    norm.num_batches_tracked[...] = 500
    return nn.Sequential({"bn": norm, "flatten": nn.Flatten(), "fc": nn.Linear(channels * size * size, 3)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a sound model, one whose statistics are off, one without a shape, and data."""
    monkeypatch.chdir(tmp_path)
    model = network()
    fastbn.save(model, "sound.safetensors", input_shape=SHAPE)
    model.bn.momentum = 1.0
    fastbn.save(model, "last.safetensors", input_shape=SHAPE)
    fastbn.save(network(), "plain.safetensors")
    rng = np.random.default_rng(1)
    np.save("data.npy", rng.standard_normal((129, *SHAPE)))
    np.savez("data.npz", x=rng.standard_normal((40, *SHAPE)), labels=np.zeros(40))
    np.save("far.npy", 9 + rng.standard_normal((64, *SHAPE)))
    return tmp_path


@pytest.fixture
def cli(folder, capsys):
    """stdout of a run that must end with ``code``."""

    def call(*arguments, code=0):
        got, out, err = run(main, ["doctor", *arguments], capsys)
        assert (got, err) == (code, ""), (out, err)
        return out

    return call


def test_a_sound_model(cli):
    lines = cli("sound.safetensors").splitlines()
    assert lines[:2] == ["read          sound.safetensors", "batch norms   1, 0 with warnings"]
    assert lines[-1] == "healthy       yes"


def test_something_wrong_is_exit_code_1(cli):
    out = cli("last.safetensors", code=1)
    assert "warning       bn: momentum 1: its statistics are those of the last batch alone; 0.1 is" in out
    report = json.loads(cli("last.safetensors", "--json", code=1))
    assert report.keys() == {"source", "data", "batch_norms", "findings", "output", "ok"}
    assert (report["source"], report["data"], report["output"], report["ok"]) == (
        "last.safetensors",
        None,
        None,
        False,
    )
    [finding] = report["findings"]
    assert finding.keys() == {"severity", "layer", "kind", "what", "number", "way_out"}
    assert (finding["layer"], finding["kind"], finding["number"]) == ("bn", "momentum", 1)


def test_notes_alone_are_exit_code_0(cli):
    model = network()
    model.bn.num_batches_tracked[...] = 0
    fastbn.save(model, "note.safetensors")
    assert "healthy       yes: 1 note" in cli("note.safetensors")


@pytest.mark.parametrize(("name", "samples"), [("data.npy", 129), ("data.npz", 40)])
def test_on_data(cli, name, samples):
    """129 samples are two batches, of 64 and of 65: one sample has no statistics of its own in every network."""
    out = cli("sound.safetensors", "--data", name)
    assert f"data          {name}\n" in out
    assert re.search(rf"^output +with the statistics of the data .* \({samples} samples\)$", out, re.MULTILINE)
    report = json.loads(cli("sound.safetensors", "--data", name, "--json"))
    assert report["output"]["samples"] == samples
    assert 0 < report["batch_norms"][0]["gap"] < 0.2


def test_data_that_do_not_fit_the_statistics(cli):
    out = cli("sound.safetensors", "--data", "far.npy", code=1)
    assert "error         bn: batch statistics move its output by 9" in out
    assert "fastbn.update_bn_stats" in out


def test_batch_size_matters(cli):
    reports = [
        json.loads(cli("sound.safetensors", "--data", "data.npy", "--json", *more))["output"]["relative"]
        for more in ([], ["--batch-size", "64"], ["--batch-size", "3"])
    ]
    assert reports[0] == reports[1] != reports[2]


def test_one_sample(cli):
    np.save("one.npy", np.load("data.npy")[0])
    assert json.loads(cli("sound.safetensors", "--data", "one.npy", "--json"))["output"]["samples"] == 1


def test_a_checkpoint_without_a_shape(cli):
    cli("plain.safetensors", "--data", "data.npy")


def test_a_sick_model_is_not_run(cli):
    model = network()
    model.bn.running_var[...] = -1
    fastbn.save(model, "sick.safetensors")
    out = cli("sick.safetensors", "--data", "data.npy", code=1)
    assert "data          data.npy, not run: see the errors" in out
    assert "the variance is -1 in all 2 channels" in out


def test_names_of_data_sets_are_their_test_samples(cli, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("FASTBN_DATA", str(tiny_mnist(tmp_path_factory.mktemp("data"))))
    fastbn.save(network(1, 28), "digits.safetensors", input_shape=(1, 28, 28))
    report = json.loads(cli("digits.safetensors", "--data", "mnist", "--json", code=1))
    assert (report["data"], report["output"]["samples"]) == ("mnist", 16)


BAD = {
    "no model": ([], "arguments are required: model"),
    "no file": (["nowhere.safetensors"], "must be a file, got nothing there"),
    "an ONNX model": (["m.onnx"], "MODEL must be a checkpoint, got m.onnx; use python -m export m.onnx --inspect"),
    "text": (["text.safetensors"], "must be a safetensors file"),
    "no data": (["sound.safetensors", "--data", "nowhere"], "nowhere must be an .npz or an .npy, got no such file"),
    "data of another kind": (["sound.safetensors", "--data", "text.txt"], "must be an .npz or an .npy, got text.txt"),
    "data that cannot be read": (["sound.safetensors", "--data", "text.npy"], "must be arrays of numbers that NumPy"),
    "an .npy that is an archive": (["sound.safetensors", "--data", "archive.npy"], "got an archive of arrays"),
    "an .npz that is an array": (["sound.safetensors", "--data", "array.npz"], "got one array without a name"),
    "no name": (["sound.safetensors", "--data", "names.npz"], r"must hold one array, or one of .*, got \['a', 'b'\]"),
    "strings": (["sound.safetensors", "--data", "strings.npy"], "must hold numbers, got <U1"),
    "another shape": (["sound.safetensors", "--data", "shape.npy"], r"shape \(N, 2, 4, 4\), got \(3, 4, 4\)"),
    "no axes": (["plain.safetensors", "--data", "row.npy"], r"must have shape \(N, C, ...\), got \(3,\)"),
    "no samples": (["sound.safetensors", "--data", "empty.npy"], r"got \(0, 2, 4, 4\)"),
    "NaN": (["sound.safetensors", "--data", "nan.npy"], "must be finite numbers, got NaN or infinity"),
    "--batch-size alone": (["sound.safetensors", "--batch-size", "4"], "--batch-size must come with --data, got 4"),
    "--batch-size 0": (["sound.safetensors", "--batch-size", "0"], "must be an integer of at least 1, got '0'"),
    "a shape that makes no sense": (["shape.safetensors", "--data", "data.npy"], "must be positive integers"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(folder, capsys, case):
    for name in ("text.safetensors", "text.txt", "text.npy"):
        Path(name).write_text("text")
    for name, array in {
        "strings": np.array(["a"]),
        "shape": np.zeros((3, 4, 4)),
        "row": np.zeros(3),
        "empty": np.zeros((0, *SHAPE)),
        "nan": np.full((4, *SHAPE), np.nan),
    }.items():
        np.save(f"{name}.npy", array)
    np.savez("names.npz", a=np.zeros(3), b=np.zeros(3))
    Path("archive.npy").write_bytes(Path("names.npz").read_bytes())
    Path("array.npz").write_bytes(Path("row.npy").read_bytes())
    checkpoint.write("shape.safetensors", network(), {}, {"input_shape": [0]})
    arguments, sentence = BAD[case]
    line = assert_refused(main, ["doctor", *arguments], capsys, folder, "python -m fastbn")
    assert re.search(sentence, line), line


def test_help(capsys):
    code, out, _ = run(main, ["doctor", "--help"], capsys)
    assert code == 0
    assert out.startswith("usage: python -m fastbn doctor")
