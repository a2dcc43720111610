"""``python -m fastbn lab``: the list, a run, and what it refuses before it works."""

import json
import sys

import pytest
from command_lines import assert_refused, run, snapshot, tiny_mnist

from fastbn.cli.main import main
from fastbn.lab.catalogue import EXPERIMENTS

PROG = "python -m fastbn"
QUICK = ["--data", "mnist", "--effort", "0.0001"]


@pytest.fixture
def folder(tmp_path, monkeypatch, tmp_path_factory):
    """The current folder; MNIST is 48 + 16 random digits elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTBN_DATA", str(tiny_mnist(tmp_path_factory.mktemp("data"))))
    return tmp_path


def test_without_a_name_the_experiments_are_listed(folder, capsys):
    code, out, err = run(main, ["lab"], capsys)
    assert (code, err) == (0, "")
    for name, experiment in EXPERIMENTS.items():
        assert f"{name} " in out
        assert experiment.title in out
        assert experiment.source in out
    assert not list(folder.iterdir())


def test_a_run_says_of_every_claim_whether_it_held(folder, capsys):
    pytest.importorskip("matplotlib")
    (folder / "out").mkdir()
    code, out, err = run(main, ["lab", "original", *QUICK, "--seed", "3", "--out", "out"], capsys)
    assert (code, err) == (0, "")
    assert snapshot(folder).keys() == {"out", "out/lab-original-mnist.png", "out/lab-original-mnist.json"}
    report = json.loads((folder / "out" / "lab-original-mnist.json").read_text())
    assert (report["seed"], report["effort"]) == (3, 0.0001)
    lines = out.splitlines()
    claims = [line.strip() for line in lines if "reproduced: " in line]
    assert len(claims) == len(report["claims"]) == 3
    for line, claim in zip(claims, report["claims"], strict=True):
        assert line.startswith("reproduced: " if claim["holds"] else "not reproduced: ")
        assert line.endswith(f"({claim['found']})")
    held = sum(claim["holds"] for claim in report["claims"])
    assert lines[-1] == f"{held} of 3 claims reproduced"


def test_all_runs_every_experiment(folder, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    for name in list(EXPERIMENTS):
        if name not in ("original", "init"):
            monkeypatch.delitem(EXPERIMENTS, name)
    code, out, _ = run(main, ["lab", "all", *QUICK], capsys)
    assert code == 0
    assert snapshot(folder).keys() == {f"lab-{name}-mnist.{kind}" for name in EXPERIMENTS for kind in ("png", "json")}
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")][:-1] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["original", "--out", "none"], "must be in a folder that exists, got no none"),
        (["original", "--data", "cifar"], "invalid choice: 'cifar'"),
        (["original", "--effort", "0"], "must be a number above 0, got '0'"),
        (["original", "--effort", "nan"], "must be a number above 0, got 'nan'"),
        (["original", "--seed", "-1"], "must be an integer of at least 0, got '-1'"),
    ],
)
def test_refused(arguments, words, folder, capsys):
    assert words in assert_refused(main, ["lab", *arguments], capsys, folder, PROG)


def test_missing_data_are_refused(folder, capsys, monkeypatch):
    monkeypatch.setenv("FASTBN_DATA", str(folder))
    assert "must hold train-images" in assert_refused(main, ["lab", "original", *QUICK], capsys, folder, PROG)


def test_a_target_that_is_a_folder_is_refused_before_the_work(folder, capsys, monkeypatch):
    (folder / "lab-original-mnist.json").mkdir()
    monkeypatch.setattr("fastbn.data.load", lambda name: pytest.fail("the data were read"))
    assert "must be a file, got a folder" in assert_refused(main, ["lab", "original", *QUICK], capsys, folder, PROG)


def test_without_matplotlib_nothing_is_begun(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = assert_refused(main, ["lab", "original", *QUICK], capsys, folder, PROG)
    assert "plot: matplotlib must be installed, got none" in line


def test_an_interruption_leaves_no_file(folder, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastbn.lab.experiment.Experiment.run", interrupt)
    code, _, err = run(main, ["lab", "original", *QUICK], capsys)
    assert (code, err) == (130, f"{PROG}: interrupted\n")
    assert not list(folder.iterdir())


def test_a_picture_that_fails_leaves_no_file(folder, capsys, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    code, _, err = run(main, ["lab", "original", *QUICK], capsys)
    assert code == 2
    assert "No space left on device" in err
    assert not list(folder.iterdir())
