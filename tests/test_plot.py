"""Runs as pictures."""

import math
import sys

import pytest

from fastbn import Epoch, History
from fastbn.errors import FastbnError, ModelError

pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


def history(epochs=3, validated=True):
    figures = {"val_loss": 0.4, "val_accuracy": 0.8} if validated else {}
    return History([Epoch(1 / (1 + i), 0.1 * i, 2.5, 0.1, **figures) for i in range(epochs)])


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    seen, savefig = [], Figure.savefig

    def record(figure, *args, **kwargs):
        seen.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return seen


def test_two_runs_side_by_side_are_a_picture(tmp_path, figures):
    path = tmp_path / "runs.png"
    history().plot(path, {"without norms": history(4)}, label="with norms")
    assert path.read_bytes()[:8] == PNG
    assert path.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [path]
    losses, accuracies = figures[0].axes
    labels = ["with norms, training", "with norms, test", "without norms, training", "without norms, test"]
    for axes in (losses, accuracies):
        assert [line.get_label() for line in axes.lines] == labels
        assert [len(line.get_xdata()) for line in axes.lines] == [3, 3, 4, 4]
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
    assert list(losses.lines[0].get_ydata()) == [1, 1 / 2, 1 / 3]
    assert list(accuracies.lines[0].get_ydata()) == [0, 10, 20]
    assert list(accuracies.lines[1].get_ydata()) == [80, 80, 80]


@pytest.mark.parametrize(
    "run",
    [
        History(),
        history(1),
        history(2, validated=False),
        History([*history(2, validated=False), *history(1)]),
        History([Epoch(0.0, 1.0, 1.0, 0.1)]),
        History([Epoch(math.nan, 0.0, 1.0, 0.1)]),
        History([Epoch(math.inf, 0.0, 1.0, 0.1)]),
    ],
    ids=["empty", "one epoch", "no validation", "validation from the third on", "loss 0", "loss nan", "loss inf"],
)
def test_odd_runs_are_drawn_too(run, tmp_path):
    run.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:8] == PNG


def test_every_run_is_drawn_however_many(tmp_path, figures):
    others = {f"run {number}": history(validated=False) for number in range(9)}
    history(validated=False).plot(tmp_path / "runs.png", others)
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["fastbn", *others]


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(FastbnError, match="fastbn"):
        history().plot(tmp_path / "runs.png", {"fastbn": history()})


@pytest.mark.parametrize(("name", "start"), [("run.svg", b"<?xml"), ("run.pdf", b"%PDF"), ("run", PNG), ("a.PNG", PNG)])
def test_the_suffix_names_the_kind(name, start, tmp_path):
    history().plot(str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


def assert_not_drawn(path):
    with pytest.raises(ModelError) as caught:
        history().plot(path)
    assert "\n" not in str(caught.value)
    assert " must " in str(caught.value)
    assert " got " in str(caught.value)


def test_a_wrong_suffix_leaves_what_is_there(tmp_path):
    path = tmp_path / "run.xyz"
    path.write_text("old")
    assert_not_drawn(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_or_in_the_way(tmp_path):
    assert_not_drawn(tmp_path / "none" / "run.png")
    assert_not_drawn(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    assert_not_drawn(tmp_path / "run.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModelError, match=r"plot: matplotlib must be installed, got none; pip install fastbn\[plot\]"):
        history().plot(tmp_path / "run.png")
