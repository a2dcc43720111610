"""The laboratory: every experiment runs, repeats itself, leaves models as they were, and judges by its figures."""

import copy
import json

import numpy as np
import pytest
from command_lines import tiny_mnist

import fastbn
from fastbn import data, nn
from fastbn._progress import Bar
from fastbn.data import Dataset, Split
from fastbn.lab import deep_linear, noisy
from fastbn.lab.catalogue import EXPERIMENTS
from fastbn.lab.descent import batches, descend, spaced
from fastbn.lab.drawing import label_of, style_of
from fastbn.lab.experiment import Options, plain
from fastbn.lab.experiments.init import factor
from fastbn.lab.experiments.landscape import along_gradient
from fastbn.lab.experiments.learning_rate import largest
from fastbn.lab.experiments.original import drift
from fastbn.lab.experiments.surface import CORNERS, barrier, bilinear
from fastbn.lab.networks import INITIALISERS, pair, perceptron, small_vgg
from fastbn.lab.probe import inputs_of, loss_and_gradient, loss_of, parameters, preserved, set_parameters
from fastbn.lab.report import figure_of, targets, write
from fastbn.lab.shift import gradient_shift, moved
from fastbn.models import lenet
from fastbn.optim import SGD

LEAST = Options(effort=1e-4)
SILENT = Bar("", wanted=False)
names = pytest.mark.parametrize("name", list(EXPERIMENTS))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return data.mnist(tiny_mnist(tmp_path_factory.mktemp("data"), train=64) / "mnist")


@pytest.fixture(scope="module")
def results(dataset):
    """One result of every experiment, made when it is first asked for."""
    made = {}

    def result(name):
        if name not in made:
            made[name] = EXPERIMENTS[name].run(dataset, LEAST, SILENT)
        return made[name]

    return result


# Every experiment


@names
def test_files(name, dataset, results, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    experiment, result = EXPERIMENTS[name], results(name)
    write(experiment, result, dataset, LEAST, tmp_path)
    picture, figures = targets(experiment, "mnist", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([picture, figures])
    report = json.loads(figures.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert report["figures"] == result.figures
    assert [claim["holds"] for claim in report["claims"]] == [claim.holds for claim in result.claims]
    assert (report["experiment"], report["data"], report["seed"], report["effort"]) == (name, "mnist", 0, 1e-4)
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[1] >= 1000
    assert pixels.std() > 0.02
    assert 0.005 < (pixels.min(axis=2) < 0.95).mean() < 0.9


@names
def test_the_same_seed_gives_the_same_figures(name, dataset, results):
    experiment = EXPERIMENTS[name]
    fastbn.manual_seed(99)
    again = experiment.to_json(experiment.run(dataset, LEAST, SILENT), dataset, LEAST)
    assert again == experiment.to_json(results(name), dataset, LEAST)


@names
def test_pictures_name_their_axes(name, results):
    pytest.importorskip("matplotlib")
    experiment = EXPERIMENTS[name]
    figure = figure_of(experiment, results(name), "mnist")
    assert figure.get_suptitle().startswith(experiment.title)
    assert all(str(claim) in figure.get_supxlabel() for claim in results(name).claims)
    titles = [axes.get_title() + axes.get_title("left") for axes in figure.axes]
    assert any(titles)
    assert any(axes.get_xlabel() for axes in figure.axes)
    assert any(axes.get_ylabel() for axes in figure.axes)


def test_another_seed_gives_other_figures(dataset, results):
    experiment = EXPERIMENTS["covariate-shift"]
    other = experiment.run(dataset, Options(seed=1, effort=1e-4), SILENT)
    assert other.figures != results("covariate-shift").figures


# Claims are made of figures


def verdicts(name, figures):
    """Whether each claim holds; every one says a number or what was refused."""
    claims = EXPERIMENTS[name].judge(figures)
    for claim in claims:
        assert claim.found
        assert str(claim).startswith("reproduced: " if claim.holds else "not reproduced: ")
        assert claim.holds in (True, False)
        assert type(claim.holds) is bool
    return [claim.holds for claim in claims]


def lenet_figures(batch, none):
    runs = {"batch": (batch, 1.0), "none": (none, 2.0)}
    epochs = list(range(1, 10))
    return {
        "epochs": epochs,
        "runs": {norm: {"accuracy": [a] * 9, "loss": [b] * 9, "log10_sum": [b] * 9} for norm, (a, b) in runs.items()},
    }


def original_figures(batch, none, drifts):
    runs = {"none": (none, drifts[0]), "batch": (batch, drifts[1])}
    return {"steps": [1, 2, 3], "runs": {norm: {"accuracy": a, "drift": [d] * 3} for norm, (a, d) in runs.items()}}


def init_figures(small, xavier, gradient, kaiming=1.0, batch_accuracy=0.9):
    def run(growth, accuracy=0.5):
        return {
            "activations": {"rms": [1.0, growth]},
            "gradients": {"rms": [gradient]},
            "accuracy": accuracy,
        }

    growths = {"zero": 1.0, "small": small, "xavier": xavier, "kaiming": kaiming}
    return {
        "steps": 9,
        "runs": {
            fill: {"none": run(growth, 0.1 if fill == "small" else 0.9), "batch": run(1.0, batch_accuracy)}
            for fill, growth in growths.items()
        },
    }


def shift_figures(none, batch):
    def run(values):
        return {name: [[value]] for name, value in zip(("moved", "changed", "cosine"), values, strict=True)}

    return {"runs": {"none": run(none), "batch": run(batch)}}


def landscape_figures(none, batch, noise):
    def run(value):
        return {"low": [1.0], "high": [value], "change": [value], "beta": [value]}

    def noisy_run(value, accuracy):
        return {"moved": [value], "accuracy": [accuracy]}

    return {
        "runs": {"none": run(none), "batch": run(batch)},
        "deep_linear": {"steps": [0, 5], "loss": {"none": [9.0, none], "batch": [9.0, batch]}},
        "noisy": {
            "runs": {
                "none": noisy_run(1.0, 0.5),
                "batch": noisy_run(1.0, 0.9),
                "noisy": noisy_run(noise, 0.9 if noise > 1 else 0.4),
            }
        },
    }


def surface_figures(between, rise):
    lines = {"start - SGD": [1.0, 1.0 + rise, 1.0], "SGD - Adam": [1.0, 1.0 + between, 1.0]}
    return {"runs": {"none": {"lines": lines}, "batch": {"lines": lines}}}


def rate_figures(batch, none):
    return {"rates": [1.0, 10.0], "runs": {"batch": {"own": batch}, "none": {"own": none}}}


def size_figures(batch, group):
    return {"sizes": [1, 2, 32], "runs": {"batch": batch, "none": [0.1] * 3, "group": group}}


JUDGED = [
    ("lenet", lenet_figures(0.99, 0.9), [True] * 4),
    ("lenet", lenet_figures(0.9, 0.91), [False, False, False, True]),
    ("lenet", lenet_figures(None, 0.9), [False, False, False, True]),
    ("original", original_figures([0.8, 0.9, 0.9], [0.1, 0.2, 0.7], (2.0, 1.0)), [True] * 3),
    ("original", original_figures([0.1, 0.2, 0.6], [0.1, 0.2, 0.7], (1.0, 2.0)), [False] * 3),
    ("init", init_figures(0.1, 0.5**0.5, 0.0), [True] * 5),
    ("init", init_figures(0.5, 1.0, 1e-9, kaiming=0.5), [False, False, False, False, True]),
    ("covariate-shift", shift_figures((2, 1, 0.9), (1, 2, 0.8)), [True] * 3),
    ("covariate-shift", shift_figures((1, 2, 0.8), (2, 1, 0.9)), [False] * 3),
    ("landscape", landscape_figures(2.0, 1.0, 5.0), [True] * 7),
    ("landscape", landscape_figures(1.0, 2.0, 0.5), [False] * 7),
    ("landscape", landscape_figures(None, 2.0, 5.0), [False] * 3 + [True] * 4),
    ("surface", surface_figures(0.5, 0.0), [True] * 4),
    ("surface", surface_figures(0.05, 0.5), [False] * 4),
    ("learning-rate", rate_figures([0.9, 0.9], [None, 0.1]), [True] * 3),
    ("learning-rate", rate_figures([0.9, 0.1], [0.9, 0.9]), [False] * 3),
    ("batch-size", size_figures([None, 0.7, 0.9], [0.9, 0.9, 0.9]), [True] * 3),
    ("batch-size", size_figures([0.5, 0.9, 0.9], [0.9, 0.8, 0.9]), [False] * 3),
]


@pytest.mark.parametrize(
    ("name", "figures", "wanted"), JUDGED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_claims(name, figures, wanted):
    assert verdicts(name, figures) == wanted


def test_every_experiment_is_judged_both_ways():
    assert {name for name, _, wanted in JUDGED if all(wanted)} == set(EXPERIMENTS)
    assert {name for name, _, wanted in JUDGED if not all(wanted)} == set(EXPERIMENTS)


# Looking at a model changes nothing


def snapshot(model):
    state = {name: array.tobytes() for name, array in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tobytes() for p in model.parameters()]
    return state, grads, [module.training for module in model.modules()]


def one_step(model, split):
    list(descend(model, split, SGD(model.parameters(), lr=0.1), SILENT, batch_size=8, steps=1, seed=0))
    return model


@pytest.mark.parametrize("training", [True, False])
def test_probes_leave_every_bit(training, dataset):
    fastbn.manual_seed(0)
    split = Split(dataset.train.images[:8], dataset.train.labels[:8])
    for model in (lenet(), small_vgg("batch")):
        one_step(model, split).train(training)
        before = snapshot(model)
        loss_of(model, split)
        loss_and_gradient(model, split)
        inputs_of(model, [model[1]], split.images)
        along_gradient(model, split, 0.1)
        with preserved(model):
            one_step(model, split).eval()
        assert snapshot(model) == before


def test_a_pending_backward_pass_survives_a_look(dataset):
    fastbn.manual_seed(0)
    model, dy = lenet().train(), np.ones((8, 10), np.float32)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each(dataset.train.images[:8])
    loss_of(model, Split(*(part[8:16] for part in dataset.train)))
    for each in (model, twin):
        each.backward(dy)
    assert snapshot(model) == snapshot(twin)


def test_looks_use_the_statistics_of_the_batch(dataset):
    fastbn.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Sigmoid()).eval()
    (inside,) = inputs_of(model, [model[3]], dataset.train.images)
    np.testing.assert_allclose(inside.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inside.std(axis=0), 1, atol=1e-3)


# Measures


def test_gradient_and_parameters_have_one_order(dataset):
    fastbn.manual_seed(0)
    model, split = lenet(norm="none"), Split(dataset.train.images[:8], dataset.train.labels[:8])
    start = parameters(model)
    loss, gradient = loss_and_gradient(model, split)
    step = 1e-2 / np.linalg.norm(gradient)
    set_parameters(model, start - step * gradient)
    np.testing.assert_allclose((loss - loss_of(model, split)) / step, gradient @ gradient, rtol=0.05)


def test_along_the_gradient_of_a_known_loss(monkeypatch):
    """Of 1/2 a |w|^2 the gradient is a w: along it everything is known."""
    model = nn.Sequential(nn.Linear(3, 2))
    monkeypatch.setattr(
        "fastbn.lab.experiments.landscape.loss_and_gradient",
        lambda m, batch: (1.5 * float(parameters(m) @ parameters(m)), 3 * parameters(m)),
    )
    size = float(np.linalg.norm(parameters(model)))
    found = along_gradient(model, None, 0.01)
    assert found["beta"] == pytest.approx(3, rel=1e-4)
    assert found["change"] == pytest.approx(3 * 0.12 * size, rel=1e-4)
    assert found["least_change"] == pytest.approx(3 * 0.015 * size, rel=1e-4)
    assert found["low"] == pytest.approx(1.5 * (0.88 * size) ** 2, rel=1e-4)
    assert found["high"] == pytest.approx(1.5 * (0.985 * size) ** 2, rel=1e-4)


def test_moved():
    old = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    assert moved(old, old[::-1]) == 0
    np.testing.assert_allclose(moved(old, old + 2), np.mean(2 / old.std(axis=0)), rtol=1e-5)


def test_gradient_shift_is_nothing_without_a_step(dataset):
    fastbn.manual_seed(0)
    split = Split(dataset.train.images.reshape(-1, 784), dataset.train.labels)
    model = perceptron((784, 8, 8, 10), norm=pair("batch"))
    before = parameters(model)
    assert gradient_shift(model, before, split) == [(0.0, pytest.approx(1.0))] * 2
    one_step(model, split)
    assert all(change > 0 and cosine < 1 for change, cosine in gradient_shift(model, before, split))


def test_the_surface_goes_through_its_corners():
    points = {name: np.random.default_rng(i).normal(size=5) for i, name in enumerate(CORNERS)}
    for name, (a, b) in CORNERS.items():
        np.testing.assert_array_equal(bilinear(points, a, b), points[name])


def test_barrier_drift_factor_and_largest():
    assert barrier([1.0, 4.0, 3.0]) == 2.0
    assert barrier([2.0, 1.0, 0.0]) == 0.0
    units = np.array([[[-1.0], [0.0], [1.0]], [[1.0], [2.0], [3.0]]])
    assert drift(units) == 0.5
    assert factor([1.0, 0.5, 0.25]) == 0.5
    assert np.isnan(factor([0.0, 0.0]))
    assert largest([1.0, 2.0, 3.0], [0.9, 0.6, None]) == 2.0
    assert largest([1.0], [0.2]) is None


def test_noise_moves_mean_and_scale_and_its_backward_pass_is_its_scale():
    fastbn.manual_seed(0)
    noise, x = noisy.Noise(), np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    first, second = noise(x), noise(x)
    assert first.dtype == x.dtype
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) > 0.01).any()
    assert (first.std(axis=0) > 0.97).all()
    scale = noise.backward(np.ones_like(x))
    # What is left without the scale is the shift, which lies within the limits of the paper.
    assert np.abs(second - scale * x).max() <= noisy.MEAN + noisy.JITTER + 1e-5
    assert (np.abs((second - scale * x).mean(axis=0)) > 1e-3).all()
    assert noise.eval()(x) is x


def test_the_deep_linear_network_is_the_papers():
    model = deep_linear._network("batch")
    assert sum(isinstance(layer, nn.Linear) for layer in model.children()) == 25
    assert (deep_linear.WIDTH, deep_linear.SAMPLES, deep_linear.STEPS, deep_linear.RATE) == (10, 1000, 10_000, 1e-6)
    figures = deep_linear.measure(Options(effort=0.002), SILENT)
    assert figures["steps"] == list(range(21))
    for losses in figures["loss"].values():
        assert losses[-1] < losses[0]


def test_batches_are_full_and_every_pass_has_each_sample_once():
    split = Split(np.arange(10.0).reshape(10, 1), np.arange(10))
    drawn = [batch.labels for batch in batches(split, 5, 4, seed=0)]
    assert [len(labels) for labels in drawn] == [5] * 4
    for one in (drawn[:2], drawn[2:]):
        assert sorted(np.concatenate(one)) == list(range(10))
    assert not np.array_equal(drawn[0], drawn[2])
    assert [len(batch.labels) for batch in batches(split, 64, 2, seed=0)] == [10, 10]


def test_a_run_that_diverges_ends_early(dataset):
    model = perceptron((784, 8, 10))
    images = dataset.train.images.reshape(-1, 784)
    split = Split(np.full_like(images, np.inf), dataset.train.labels)
    with np.errstate(all="ignore"):
        losses = list(descend(model, split, SGD(model.parameters(), lr=1), SILENT, batch_size=8, steps=9, seed=0))
    assert len(losses) == 1
    assert not np.isfinite(losses[0])


def test_initialisers():
    fastbn.manual_seed(0)
    model = perceptron((400, 400, 10))
    for name, std in (("zero", 0.0), ("small", 0.01), ("xavier", 0.05), ("kaiming", 0.005**0.5), ("orthogonal", 0.05)):
        nn.init_weights_(model, INITIALISERS[name])
        np.testing.assert_allclose(model[0].weight.data.std(), std, rtol=0.02)


def test_initialisers_reach_weights_with_a_norm():
    for norm in ("weight", "spectral"):
        fastbn.manual_seed(0)
        model, plain_model = lenet(norm=norm), lenet(norm="none")
        for each in (model, plain_model):
            fastbn.manual_seed(1)
            nn.init_weights_(each, INITIALISERS["xavier"])
        if norm == "weight":
            np.testing.assert_allclose(model[0].weight.data, plain_model[0].weight.data, rtol=1e-5)
        assert np.isfinite(model[0].weight.data).all()


def test_figures_are_plain():
    given = {"a": np.array([1.0, np.nan]), "b": (np.float32(1) / 3, np.inf), "c": {1: np.int64(2)}, "d": None}
    assert plain(given) == {"a": [1.0, None], "b": [0.3333333, None], "c": {"1": 2}, "d": None}


def test_eight_norms_are_told_apart():
    norms = ["batch", "none", "group", "layer", "instance", "renorm", "weight", "fixup"]
    styles = [style_of(norm, norms) for norm in norms]
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == len(norms)
    assert style_of("batch", ["batch"]) == styles[0]
    assert len({label_of(norm) for norm in norms}) == len(norms)


def test_the_bar_is_for_terminals(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=terminal: answer)
        with Bar("surface") as bar:
            bar.expect(3)
            bar.say(behind="batch norm")
            bar.advance(2)
        assert capsys.readouterr().out == ""


def test_spaced():
    assert spaced(2, 40) == [1, 2]
    assert spaced(100, 4) == [25, 50, 75, 100]


def test_the_dataset_is_not_changed(dataset):
    before = [part.tobytes() for split in (dataset.train, dataset.test) for part in split]
    EXPERIMENTS["original"].run(dataset, LEAST, SILENT)
    assert [part.tobytes() for split in (dataset.train, dataset.test) for part in split] == before
    assert isinstance(dataset, Dataset)
