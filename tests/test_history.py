"""What a run measured: a sequence of epochs, as JSON and back."""

import math

import pytest

from fastbn import Epoch, History
from fastbn.errors import ModelError


def history(epochs=3, validated=True):
    figures = {"val_loss": 0.4, "val_accuracy": 0.8} if validated else {}
    return History([Epoch(1 / (1 + i), 0.1 * i, 2.5, 0.1, **figures) for i in range(epochs)])


def test_a_history_is_a_sequence_of_epochs():
    run = history()
    assert len(run) == 3
    assert run[-1] is run.epochs[2]
    assert list(run) == run.epochs
    assert len(History()) == 0


@pytest.mark.parametrize("run", [History(), history(), history(1, validated=False)])
def test_json_and_back(run):
    assert History.from_json(run.to_json()) == run


def test_figures_that_are_not_finite_survive():
    (epoch,) = History.from_json(History([Epoch(math.inf, 0.1 + 0.2, math.nan, 0.0)]).to_json())
    assert epoch.loss == math.inf
    assert epoch.accuracy == 0.1 + 0.2
    assert math.isnan(epoch.seconds)


BAD_JSON = {
    "empty": "",
    "cut off": history().to_json()[:-5],
    "text": "loss",
    "number": "5",
    "null": "null",
    "object": "{}",
    "string": '""',
    "list of numbers": "[1, 2]",
    "missing figures": '[{"loss": 1}]',
    "unknown figure": '[{"loss": 1, "accuracy": 1, "seconds": 1, "lr": 1, "mood": 1}]',
    "figure a word": '[{"loss": "x", "accuracy": 1, "seconds": 1, "lr": 1}]',
    "very deep": "[" * 100_000,
    "none": None,
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_anything_else_is_refused(case):
    with pytest.raises(ModelError, match=r"History\.from_json: text must be what to_json wrote, got") as caught:
        History.from_json(BAD_JSON[case])
    assert "\n" not in str(caught.value)
