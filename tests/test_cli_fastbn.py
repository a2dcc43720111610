"""``python -m fastbn``: training LeNet, resuming, compiling ahead, and what it refuses without touching a file."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_lines import assert_refused, run, snapshot, tiny_mnist, write_idx

import fastbn
from fastbn.cli import train
from fastbn.cli.main import main
from fastbn.models import lenet
from fastbn.training import checkpoint

PROG = "python -m fastbn"
TRAIN = ["train", "--data", "mnist", "--batch-size", "16"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path, monkeypatch, tmp_path_factory):
    """The current folder; MNIST is 48 + 16 random digits elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTBN_DATA", str(tiny_mnist(tmp_path_factory.mktemp("data"))))
    return tmp_path


@pytest.fixture
def cli(folder, capsys):
    """(stdout, stderr) of a run that must succeed."""

    def call(*arguments):
        code, out, err = run(main, arguments, capsys)
        assert code == 0, err
        return out, err

    return call


@pytest.fixture
def refused(folder, capsys):
    """The one line of a run that must refuse and change nothing."""
    return lambda *arguments: assert_refused(main, arguments, capsys, folder, PROG)


def state(path):
    return fastbn.load(path).state_dict()


def epochs(line):
    """The JSON report's epochs by run, without their seconds."""
    runs = json.loads(line)["runs"]
    return {name: [{**epoch, "seconds": None} for epoch in entries] for name, entries in runs.items()}


# Training


@pytest.mark.parametrize("norm", ["both", "batch", "none", "fixup"])
def test_train(cli, folder, norm):
    out, err = cli(*TRAIN, "--epochs", "1", "--norm", norm)
    norms = ["batch", "none"] if norm == "both" else [norm]
    names = {f"lenet-mnist-{name}.safetensors" for name in norms}
    assert snapshot(folder).keys() == {"lenet-mnist.png", *names}
    assert Path("lenet-mnist.png").read_bytes().startswith(PNG)
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == 2 * len(norms) + 1
    assert [line.startswith("  epoch  1/1  loss ") for line in lines[1:-1:2]] == [True] * len(norms)
    assert lines[-1].startswith("written: ")
    assert all(name in lines[-1] for name in names)
    for name in norms:
        model, _, extra = checkpoint.read(f"lenet-mnist-{name}.safetensors")
        assert extra["input_shape"] == [1, 28, 28]
        assert sum("BatchNorm" in type(layer).__name__ for layer in model.modules()) == (4 if name == "batch" else 0)
        assert np.isfinite(model.eval()(np.zeros((1, 1, 28, 28), np.float32))).all()


def test_train_json(cli):
    out, err = cli(*TRAIN, "--epochs", "2", "--json")
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report.keys() == {"data", "picture", "runs"}
    assert (report["data"], report["picture"]) == ("mnist", "lenet-mnist.png")
    assert report["runs"].keys() == {"batch", "none"}
    for entries in report["runs"].values():
        assert len(entries) == 2
        for entry in entries:
            assert entry.keys() == {"loss", "accuracy", "seconds", "lr", "val_loss", "val_accuracy"}
            assert 0 < entry["loss"] < 20
            assert entry["val_accuracy"] in {hits / 16 for hits in range(17)}
        assert [entry["lr"] for entry in entries] == [0.05, pytest.approx(0.025)]
    for text in ("LeNet with batch norm", "LeNet without", "epoch  2/2", "written: "):
        assert text in err


def test_train_into_a_folder(cli, folder):
    (folder / "runs").mkdir()
    cli(*TRAIN, "--epochs", "1", "--norm", "none", "--out", "runs")
    assert snapshot(folder).keys() == {"runs", "runs/lenet-mnist.png", "runs/lenet-mnist-none.safetensors"}


def test_train_is_repeatable(cli, folder):
    reports = []
    for name, seed in (("one", "4"), ("two", "4"), ("three", "5")):
        (folder / name).mkdir()
        out, _ = cli(*TRAIN, "--epochs", "1", "--norm", "batch", "--seed", seed, "--out", name, "--json")
        reports.append(epochs(out))
    assert reports[0] == reports[1] != reports[2]
    one, two = (state(f"{name}/lenet-mnist-batch.safetensors") for name in ("one", "two"))
    for key, array in one.items():
        np.testing.assert_array_equal(array, two[key], err_msg=key)


def test_seed_is_that_of_the_order_too(cli, monkeypatch):
    fit, seeds = train.training.fit, []
    monkeypatch.setattr(
        train.training, "fit", lambda *given, seed, **more: seeds.append(seed) or fit(*given, seed=seed, **more)
    )
    cli(*TRAIN, "--epochs", "1", "--seed", "7")
    assert seeds == [7, 7]


@pytest.mark.parametrize(("option", "value"), [("--lr", "0.01"), ("--momentum", "0.5"), ("--batch-size", "8")])
def test_train_options_matter(cli, option, value):
    arguments = [*TRAIN, "--epochs", "1", "--norm", "batch", "--json"]
    default, _ = cli(*arguments)
    changed, _ = cli(*arguments, option, value)
    assert epochs(default) != epochs(changed)


def test_resume_ends_with_the_same_bits(cli, folder):
    """The rate falls along --epochs, so a run that stopped early is made by stopping it, not by fewer epochs."""
    arguments = [*TRAIN, "--norm", "batch", "--json", "--epochs", "3"]
    for name in ("whole", "parts"):
        (folder / name).mkdir()
    whole, _ = cli(*arguments, "--out", "whole")
    stop_after(1, lambda: main([*arguments, "--out", "parts"]))
    resumed, err = cli(*arguments, "--out", "parts", "--resume")
    assert epochs(resumed) == epochs(whole)
    assert "epoch  1/3" not in err
    assert "epoch  2/3" in err
    want, got = (state(f"{name}/lenet-mnist-batch.safetensors") for name in ("whole", "parts"))
    for key, array in want.items():
        np.testing.assert_array_equal(got[key], array, err_msg=key)


def stop_after(count, action):
    """Ctrl-C as soon as ``count`` checkpoints are written."""
    fit = sys.modules["fastbn.training.fit"]
    store, written = fit._store, []

    def interrupted(*arguments):
        store(*arguments)
        written.append(arguments[0])
        if len(written) == count:
            raise KeyboardInterrupt

    fit._store = interrupted
    try:
        assert action() == 130
    finally:
        fit._store = store


def test_resume_of_a_run_that_is_done(cli, folder):
    first, _ = cli(*TRAIN, "--epochs", "2", "--json")
    before = snapshot(folder)
    again, err = cli(*TRAIN, "--epochs", "2", "--json", "--resume")
    assert epochs(again) == epochs(first)
    assert "epoch  " not in err
    after = snapshot(folder)
    assert all(after[name] == before[name] for name in before if name.endswith(".safetensors"))


def test_resume_without_a_checkpoint_begins(cli):
    out, _ = cli(*TRAIN, "--epochs", "1", "--resume", "--json")
    assert [len(entries) for entries in epochs(out).values()] == [1, 1]


def test_without_resume_a_run_begins_anew(cli):
    first, _ = cli(*TRAIN, "--epochs", "1", "--norm", "none", "--json")
    again, _ = cli(*TRAIN, "--epochs", "1", "--norm", "none", "--json")
    assert epochs(first) == epochs(again)


def test_gzipped_data(cli, folder):
    data = Path(os.environ["FASTBN_DATA"], "mnist")
    out, _ = cli(*TRAIN, "--epochs", "1", "--norm", "none", "--json")
    for path in list(data.iterdir()):
        (data / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped, _ = cli(*TRAIN, "--epochs", "1", "--norm", "none", "--json")
    assert epochs(zipped) == epochs(out)


def test_json_stays_json_when_the_run_blows_up(folder, capsys):
    """A rate that ends in NaN is refused, or reported without NaN, which JSON does not have."""
    arguments = [*TRAIN, "--epochs", "1", "--norm", "none", "--lr", "3e38", "--json"]
    code, out, err = run(main, arguments, capsys)
    assert code in (0, 2)
    if code == 0:
        json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in the report: {out}"))
    else:
        assert "must stay finite" in err


def test_interruption(folder, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.training, "fit", interrupt)
    code, _, err = run(main, [*TRAIN, "--epochs", "1"], capsys)
    assert (code, err) == (130, f"{PROG}: interrupted\n")
    assert not list(folder.iterdir())


# Compiling ahead


def test_warmup(cli, folder):
    assert cli("warmup") == ("", "")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("stored", [False, True])
def test_warmup_of_a_checkpoint(cli, folder, stored):
    fastbn.save(lenet(), "model.safetensors", input_shape=(1, 28, 28) if stored else None)
    before = snapshot(folder)
    assert cli("warmup", "model.safetensors", *([] if stored else ["--input-shape", "1,28,28"])) == ("", "")
    assert snapshot(folder) == before


def test_warmup_of_a_trained_checkpoint(cli):
    cli(*TRAIN, "--epochs", "1", "--norm", "batch")
    assert cli("warmup", "lenet-mnist-batch.safetensors") == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.safetensors"], "must be a file, got nothing there"),
        (["."], "must be a file, got a folder"),
        (["text.safetensors"], "must be a safetensors file"),
        (["plain.safetensors"], "--input-shape must be given"),
        (["plain.safetensors", "--input-shape", "3,28,28"], "got"),
        (["plain.safetensors", "--input-shape", "28"], "must have 4 axes"),
        (["plain.safetensors", "--input-shape", "1,28,x"], "must be sizes of one sample"),
        (["plain.safetensors", "--input-shape", "1,0,28"], "must be sizes of one sample"),
        (["plain.safetensors", "more.safetensors"], "unrecognized arguments"),
        (["--input-shape", "1,28,28"], "--input-shape must"),
    ],
)
def test_warmup_refused(refused, arguments, sentence):
    fastbn.save(lenet(), "plain.safetensors")
    Path("text.safetensors").write_text("text")
    line = refused("warmup", *arguments)
    assert re.search(sentence, line), line


@pytest.mark.parametrize("shape", [5, "abc", [1.5], []])
def test_warmup_of_a_checkpoint_with_a_shape_that_makes_no_sense(refused, shape):
    checkpoint.write("model.safetensors", lenet(), {}, {"input_shape": shape})
    refused("warmup", "model.safetensors")


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "more"], "unrecognized arguments: more"),
        (["train", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["train", "--non\nsense"], "unrecognized arguments"),
        (["train", "--data", "cifar"], "invalid choice: 'cifar'"),
        (["train", "--norm", "no"], "invalid choice: 'no'"),
        *(
            (["train", option, value], f"{option}: (must be .*, got {value!r}|expected one argument)")
            for option, values in {
                "--epochs": ("0", "-1", "1.5", "ten", ""),
                "--batch-size": ("1", "0", "x"),
                "--lr": ("0", "-0.1", "nan", "inf", "fast"),
                "--momentum": ("-0.1", "nan", "inf"),
                "--seed": ("-1", "x"),
            }.items()
            for value in values
        ),
    ],
)
def test_bad_arguments(refused, arguments, sentence):
    line = refused(*arguments)
    assert re.search(sentence, line), line


@pytest.mark.parametrize("out", ["nowhere", "file", "file/below"])
def test_missing_folder(refused, folder, out):
    (folder / "file").write_text("text")
    assert "must be in a folder that exists" in refused(*TRAIN, "--epochs", "1", "--out", out)


@pytest.mark.parametrize("name", ["lenet-mnist.png", "lenet-mnist-batch.safetensors", "lenet-mnist-none.safetensors"])
def test_folder_in_the_place_of_a_file(refused, folder, name):
    (folder / name).mkdir()
    assert "must be a file, got a folder" in refused(*TRAIN, "--epochs", "1")


DAMAGE = {
    "no folder": (lambda data: [path.unlink() for path in data.iterdir()], "must hold train-images-idx3-ubyte"),
    "no labels": (lambda data: (data / "t10k-labels-idx1-ubyte").unlink(), "must hold t10k-labels-idx1-ubyte"),
    "text": (lambda data: (data / "train-images-idx3-ubyte").write_text("text"), "must start as an IDX file does"),
    "truncated": (
        lambda data: (data / "train-images-idx3-ubyte").write_bytes(
            (data / "train-images-idx3-ubyte").read_bytes()[:99]
        ),
        "must hold .* bytes for its shape",
    ),
    "too few labels": (lambda data: write_idx(data / "train-labels-idx1-ubyte", np.zeros(3)), "one label per image"),
    "labels of a class too many": (
        lambda data: write_idx(data / "train-labels-idx1-ubyte", np.full(48, 10)),
        "targets",
    ),
    "images too small": (lambda data: write_idx(data / "train-images-idx3-ubyte", np.zeros((48, 8, 8))), "must"),
    "no images": (
        lambda data: [
            write_idx(data / "train-images-idx3-ubyte", np.zeros((0, 28, 28))),
            write_idx(data / "train-labels-idx1-ubyte", np.zeros(0)),
        ],
        "at least one",
    ),
    "one image": (
        lambda data: [
            write_idx(data / "train-images-idx3-ubyte", np.zeros((1, 28, 28))),
            write_idx(data / "train-labels-idx1-ubyte", np.zeros(1)),
        ],
        "more than 1 value per channel",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_bad_data(refused, case):
    damage, sentence = DAMAGE[case]
    damage(Path(os.environ["FASTBN_DATA"], "mnist"))
    line = refused(*TRAIN, "--epochs", "1")
    assert re.search(sentence, line), line


@pytest.mark.parametrize("case", ["text", "another kind", "without optimiser", "another network", "extra is a list"])
def test_resume_refused(refused, folder, case):
    path = folder / "lenet-mnist-batch.safetensors"
    if case == "text":
        path.write_text("text")
    elif case == "without optimiser":
        fastbn.save(lenet(), path)
    elif case == "extra is a list":
        checkpoint.write(path, lenet(), {}, [])
    else:
        model = lenet(norm="none" if case == "another network" else "batch")
        optimizer = (fastbn.optim.SGD if case == "another network" else fastbn.optim.Adam)(model.parameters(), lr=0.1)
        data = fastbn.data.load("mnist").train
        fastbn.fit(model, data, epochs=1, optimizer=optimizer, checkpoint=path)
    refused(*TRAIN, "--epochs", "2", "--norm", "batch", "--resume")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["warmup", "--help"]])
def test_help(capsys, arguments):
    code, out, err = run(main, arguments, capsys)
    assert (code, err) == (0, "")
    assert out.startswith("usage: python -m fastbn")


def test_as_a_process(tmp_path, tmp_path_factory):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "FASTBN_DATA": str(tiny_mnist(tmp_path_factory.mktemp("data"))),
    }
    command = [sys.executable, "-m", "fastbn", *TRAIN, "--epochs", "1", "--norm", "batch", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]["batch"]) == 1
    assert snapshot(tmp_path).keys() == {"lenet-mnist.png", "lenet-mnist-batch.safetensors"}
