"""The doctor: sound models are left in peace, every defect is found and nothing else, the gap is what it says it is."""

import io
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import data, models, nn, optim
from fastbn.diagnosis.checks import GAP
from fastbn.diagnosis.finding import SEVERITIES, WAYS_OUT
from fastbn.diagnosis.gap import norm_gap
from fastbn.diagnosis.text import SHOWN, print_diagnosis
from fastbn.errors import ArgumentError, DtypeError, ShapeError

CHANNELS = 8


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


def settle(norm, rng, batches=1000):
    """Parameters and statistics as a trained batch norm has them."""
    channels = norm.num_features
    if norm.affine:
        norm.weight.data[...] = rng.uniform(0.2, 1.5, channels)
        norm.bias.data[...] = rng.normal(0, 0.3, channels)
    norm.running_mean[...] = rng.normal(0, 0.5, channels)
    norm.running_var[...] = rng.lognormal(-1, 1, channels)
    norm.num_batches_tracked[...] = batches


def settled(model, **options):
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.track_running_stats:
            settle(module, rng, **options)
    return model


def network(bias=False):
    return settled(
        nn.Sequential(
            {
                "conv": nn.Conv2d(3, CHANNELS, 3, bias=bias),
                "bn": nn.BatchNorm2d(CHANNELS),
                "relu": nn.ReLU(),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(CHANNELS * 16, 5),
            }
        )
    )


def images(rng, count=256, shape=(3, 6, 6)):
    return rng.normal(size=(count, *shape)).astype(np.float32)


def batched(x, size=64):
    return [x[start : start + size] for start in range(0, len(x), size)]


def kinds(diagnosis):
    return [finding.kind for finding in diagnosis.findings]


def state(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


# Sound models


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.fixture(scope="module")
def lenet(digits):
    fastbn.manual_seed(0)
    model = models.lenet()
    images, labels = digits.train
    sgd = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    fastbn.fit(model, (images[:640], labels[:640]), epochs=6, optimizer=sgd, batch_size=64)
    return model


def test_a_freshly_trained_lenet_is_healthy(lenet, digits):
    """But for the biases that LeNet has before its batch norms."""
    without = fastbn.doctor(lenet)
    assert without.ok
    assert kinds(without) == ["useless-bias"] * 4
    assert [finding.number for finding in without.findings] == [6, 16, 120, 84]
    on_data = fastbn.doctor(lenet, batched(digits.test.images))
    assert on_data.findings == without.findings
    assert all(0 < norm.gap < GAP for norm in on_data.batch_norms)
    assert on_data.output.samples == 360
    assert on_data.output.changed < 36


@pytest.mark.parametrize("count", [4, 16, 64])
def test_few_samples_are_no_alarm(lenet, digits, count):
    assert fastbn.doctor(lenet, [digits.test.images[:count]]).ok


def test_data_of_another_domain_show_in_the_first_batch_norm(lenet, digits):
    """Those behind it see its output, which batch statistics have put right."""
    diagnosis = fastbn.doctor(lenet, batched(0.25 * digits.test.images + 1.5))
    assert [(f.layer, f.kind) for f in diagnosis.findings if f.severity != "note"] == [("1", "gap")]
    assert diagnosis.output.changed > 100


def torchvision_like():
    """ResNet-18 as torchvision's file has it: no count of batches, and channels that weight decay has put to sleep."""
    model = settled(models.resnet18(), batches=0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            asleep = slice(None, None, 5)
            norm.weight.data[asleep], norm.bias.data[asleep] = 1e-8, -1e-6
            norm.running_mean[asleep], norm.running_var[asleep] = 1e-7, 1e-13
    return model


def test_torchvisions_weights_are_healthy():
    diagnosis = fastbn.doctor(torchvision_like())
    assert diagnosis.ok
    assert len(diagnosis.batch_norms) == 20
    assert set(kinds(diagnosis)) == {"uncounted", "dead"}


def test_a_settled_network_has_no_findings(rng):
    diagnosis = fastbn.doctor(network())
    assert diagnosis.ok
    assert diagnosis.findings == ()
    assert diagnosis.output is None


def test_update_bn_stats_is_the_way_out_that_it_is_said_to_be(lenet, digits):
    """Even with three batches: the batches of training count on."""
    model, x = network(), images(np.random.default_rng(1))
    before = fastbn.doctor(model, batched(x))
    assert kinds(before) == ["gap"]
    fastbn.update_bn_stats(model, batched(x)[:3])
    assert fastbn.doctor(model).findings == ()
    assert fastbn.doctor(model, batched(x)).findings == ()


def test_untrained_is_not_healthy():
    diagnosis = fastbn.doctor(models.lenet())
    assert not diagnosis.ok
    assert [f.layer for f in diagnosis.findings if f.kind == "default-statistics"] == ["1", "5", "10", "13"]


def test_a_model_without_batch_norms_is_healthy(rng):
    for model in (nn.Linear(3, 2), fastbn.fold(network())):
        diagnosis = fastbn.doctor(model)
        assert (diagnosis.ok, diagnosis.batch_norms, diagnosis.findings) == (True, (), ())
        assert str(diagnosis) == "batch norms   none\nhealthy       yes"


# One defect at a time


def put(name, values, index=slice(None)):
    def change(norm):
        array = getattr(norm, name)
        (array.data if isinstance(array, nn.Parameter) else array)[index] = values

    return change


def both(*changes):
    return lambda norm: [change(norm) for change in changes]


def option(**values):
    return lambda norm: norm.__dict__.update(values)


DEFAULT = both(put("running_mean", 0), put("running_var", 1))
TINY = np.float32(1e-20)

# fmt: off
DEFECTS = {
    "default statistics": (both(DEFAULT, put("num_batches_tracked", 0, ())), "error", "default-statistics", 8,
        "mean 0 and variance 1, the initial values, in all 8 channels, num_batches_tracked 0"),
    "default statistics after training": (DEFAULT, "error", "default-statistics", 8, "num_batches_tracked 1000"),
    "default statistics in two channels": (
        both(put("running_mean", 0, [1, 6]), put("running_var", 1, [1, 6])), "error", "default-statistics", 2,
        "in 2 of 8 channels (1, 6)"),
    "a count of none": (put("num_batches_tracked", 0, ()), "note", "uncounted", 0, "num_batches_tracked is 0"),
    "a count of none that matters": (both(put("num_batches_tracked", 0, ()), option(momentum=None)),
        "warning", "uncounted", 0, "the next batch replaces them"),
    "three batches": (both(put("running_var", 0.9), put("num_batches_tracked", 3, ())),
        "warning", "stale-statistics", 0.9**3, "73% of its statistics are the initial values, (1 - 0.1)^3"),
    "a momentum that never gets there": (
        both(put("running_var", 0.99), put("num_batches_tracked", 500, ()), option(momentum=1e-4)),
        "warning", "stale-statistics", 0.9999**500, "95% of its statistics are the initial values, (1 - 0.0001)^500"),
    "momentum 0": (option(momentum=0.0), "warning", "momentum", 0, "its statistics never move"),
    "momentum 1": (option(momentum=1.0), "warning", "momentum", 1, "those of the last batch alone"),
    "Keras's momentum": (option(momentum=0.99), "warning", "momentum", 0.99, "it is 0.01 here"),
    "momentum over a half": (option(momentum=0.6), "warning", "momentum", 0.6, "momentum 0.6 is the weight of the new"),
    "a dead channel": (put("weight", 0, 3), "note", "dead", 0, "gamma is 0 in 1 of 8 channels (3)"),
    "weight decay": (put("weight", -1e-8, [3, 5]), "note", "dead", 1e-8, "gamma is at most 1e-08 in 2 of 8"),
    "a dead layer": (put("weight", 0), "warning", "dead", 0, "gamma is 0 in all 8 channels: nothing of the input"),
    "half a dead layer": (put("weight", 0, slice(4)), "warning", "dead", 0, "4 of 8 channels (0, 1, 2, ...)"),
    "a constant input": (both(put("running_var", 0, 2), put("weight", 1, 2)), "note", "dead", 0,
        "the variance is 0 in 1 of 8 channels (2): the input is constant, and else scaled 316 times"),
    "a constant input of a layer": (put("running_var", 0), "warning", "dead", 0, "the variance is 0 in all 8"),
    "a huge gamma": (put("weight", -500, 1), "warning", "exploding", -500, "gamma reaches -500 in 1 of 8 channels (1)"),
    "a huge scale": (both(option(eps=1e-12), put("running_var", 1e-8, 1), put("weight", 2, 1)), "warning",
        "exploding", 2e4, "gamma / sqrt(variance + eps) reaches 2e+04"),
    "a huge variance": (put("running_var", 1e10, 1), "warning", "exploding", 1e10, "the variance reaches 1e+10"),
    "a variance below eps": (both(put("running_var", 1e-6, 4), put("weight", 1, 4)), "note", "eps", 1e-6,
        "the variance is down to 1e-06, below eps 1e-05, in 1 of 8 channels (4): the input is scaled up to 302 times"),
    "variances below eps": (both(put("running_var", 1e-6), put("weight", 1)), "warning", "eps", 1e-6, "in all 8"),
    "NaN in gamma": (put("weight", np.nan, 1), "error", "not-finite", 1, "gamma is not finite in 1 of 8 channels (1)"),
    "infinity in beta": (put("bias", np.inf, 1), "error", "not-finite", 1, "beta is not finite"),
    "NaN in the mean": (put("running_mean", np.nan, [1, 2]), "error", "not-finite", 2, "mean is not finite"),
    "an infinite variance": (put("running_var", np.inf, 0), "error", "not-finite", 1, "variance is not finite"),
    "a negative variance": (put("running_var", -2, 7), "error", "negative-variance", -2, "variance is -2 in 1 of 8"),
    "no variance and no eps": (both(option(eps=0.0), put("running_var", 0, 7)), "error", "negative-variance", 0,
        "the variance is 0, without eps, in 1 of 8 channels (7)"),
    "a shift beyond float16": (both(put("running_mean", 1e5, 2), put("running_var", 1, 2), put("weight", 1, 2)),
        "note", "float16", 1, "its folded bias loses up to 1 of its value in 1 of 8 channels (2)"),
    "a variance beyond float16": (both(put("running_var", 1e6, 2), put("running_mean", 0, 2), put("weight", 1, 2)),
        "note", "float16", 1, "in float16 its scale loses up to 1 of its value"),
}
# fmt: on


@pytest.mark.parametrize("case", DEFECTS)
def test_a_defect_is_found_and_nothing_else(case):
    change, severity, kind, number, what = DEFECTS[case]
    model = network()
    change(model.bn)
    diagnosis = fastbn.doctor(model)
    [finding] = diagnosis.findings
    assert (finding.severity, finding.layer, finding.kind) == (severity, "bn", kind)
    assert finding.number == pytest.approx(number, rel=1e-3)
    assert what in finding.what
    assert finding.way_out == WAYS_OUT[kind]
    assert diagnosis.ok == (severity == "note")
    assert case == "a shift beyond float16" or f"{severity:<14}bn: {finding.what}; " in str(diagnosis)
    json.dumps(asdict(diagnosis), allow_nan=False)


def test_weights_that_float16_has_no_digits_for():
    model = network()
    model.conv.weight.data[6] *= TINY
    model.bn.running_mean[6] *= TINY
    model.bn.running_var[6] = 1
    [finding] = fastbn.doctor(model).findings
    assert (finding.severity, finding.kind, finding.number) == ("note", "float16", 1)
    assert "folded weight loses up to 1 of its value in 1 of 8 channels (6)" in finding.what


def test_a_bias_without_effect():
    [finding] = fastbn.doctor(network(bias=True)).findings
    assert (finding.severity, finding.kind, finding.number) == ("note", "useless-bias", CHANNELS)
    assert fastbn.doctor(freeze(network(bias=True))).findings == ()


def freeze(model):
    model.bn.freeze()
    return model


def test_every_defect_has_its_severity_and_every_kind_its_way_out():
    assert {severity for _, severity, *_ in DEFECTS.values()} == set(SEVERITIES)
    covered = {kind for _, _, kind, *_ in DEFECTS.values()} | {"useless-bias", "gap", "no-statistics"}
    assert covered == set(WAYS_OUT)


def test_frozen_statistics_may_have_any_momentum():
    model = network()
    model.bn.momentum = 0.0
    assert fastbn.doctor(freeze(model)).findings == ()


def test_stale_statistics_are_judged_by_the_data_where_there_are_any():
    """After three batches most is left of the start; where that is what the data have, nothing is wrong."""
    model, x = network(), images(np.random.default_rng(1))
    model.bn.num_batches_tracked[...] = 3
    fastbn.update_bn_stats(model, batched(x))
    model.conv.weight.data /= np.sqrt(model.bn.running_var.min() / 2)
    fastbn.update_bn_stats(model, batched(x))
    model.bn.num_batches_tracked[...] = 3
    assert kinds(fastbn.doctor(model)) == ["stale-statistics"]
    assert fastbn.doctor(model, batched(x)).findings == ()
    model.bn.running_mean[...] += 10
    [finding] = fastbn.doctor(model, batched(x)).findings
    assert (finding.severity, finding.kind) == ("error", "stale-statistics")
    assert "73% of its statistics" in finding.what
    assert "batch statistics move its output by" in finding.what


def test_statistics_set_by_other_means_are_not_stale():
    """An average that began at 1 cannot be below what is left of it."""
    model = network()
    model.bn.num_batches_tracked[...] = 3
    model.bn.running_var[0] = 0.5
    assert fastbn.doctor(model).findings == ()


def test_without_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3, affine=False))
    settled(model)
    first, second = fastbn.doctor(model).batch_norms
    assert kinds(fastbn.doctor(model)) == ["no-statistics"]
    assert (first.batches, first.variance, first.gap) == (None, None, None)
    assert (second.gamma, second.batches) == ((1, 1), 1000)


# The gap


def explicit_gap(gamma, mean, var, eps, x):
    """Both outputs of x (N, C) as they are defined."""
    train = gamma * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + eps)
    infer = gamma * (x - mean) / np.sqrt(var + eps)
    return math.sqrt(((train - infer) ** 2).mean(axis=0).sum() / (gamma**2).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(1e-6, 1e3), st.floats(-5, 5))
def test_the_gap_is_the_distance_of_both_outputs(seed, channels, spread, offset):
    rng = np.random.default_rng(seed)
    x = offset + spread * rng.standard_normal((50, channels))
    gamma, mean, var = rng.normal(size=channels), rng.normal(size=channels), rng.uniform(0.1, 2, channels)
    got = norm_gap(gamma, mean, var, 1e-5, x.mean(axis=0), x.var(axis=0))
    assert got == pytest.approx(explicit_gap(gamma, mean, var, 1e-5, x), rel=1e-9)
    assert norm_gap(gamma, x.mean(axis=0), x.var(axis=0), 1e-5, x.mean(axis=0), x.var(axis=0)) == 0
    assert norm_gap(0 * gamma, mean, var, 1e-5, x.mean(axis=0), x.var(axis=0)) == 0
    order = rng.permutation(channels)
    moments = x.mean(axis=0)[order], x.var(axis=0)[order]
    assert norm_gap(gamma[order], mean[order], var[order], 1e-5, *moments) == pytest.approx(got, rel=1e-12)


def test_a_gap_that_is_no_number():
    one = np.ones(1)
    assert norm_gap(one, one, one, 0.0, np.full(1, np.nan), one) is None


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("affine", [True, False])
def test_a_layers_gap_is_over_all_batches_together(kind, affine, rng):
    axes = {nn.BatchNorm1d: (), nn.BatchNorm2d: (2, 3), nn.BatchNorm3d: (1, 2, 2)}[kind]
    norm = settled(kind(3, affine=affine))
    x = (2 + 3 * rng.normal(size=(90, 3, *axes))).astype(np.float32)
    diagnosis = fastbn.doctor(norm, batched(x, 20))
    gamma = norm.weight.data if affine else np.ones(3)
    rows = np.moveaxis(x, 1, -1).reshape(-1, 3).astype(np.float64)
    want = explicit_gap(gamma, norm.running_mean.astype(np.float64), norm.running_var.astype(np.float64), 1e-5, rows)
    [listed] = diagnosis.batch_norms
    assert listed.gap == pytest.approx(want, rel=1e-5)
    assert (listed.layer, listed.kind, listed.channels) == ("", kind.__name__, 3)
    [finding] = diagnosis.findings
    assert (finding.kind, finding.layer) == ("gap", kind.__name__)
    assert finding.severity == ("error" if want >= 1 else "warning")
    assert finding.number == listed.gap


def test_the_output_is_compared_batch_by_batch(rng):
    model, batches = network(), batched(images(rng, 70), 32)
    output = fastbn.doctor(model, (batch for batch in batches)).output
    infer = [model.eval()(batch) for batch in batches]
    train = [model.train()(batch) for batch in batches]
    distance = math.sqrt(sum(np.square(a - b).sum() for a, b in zip(train, infer, strict=True)))
    assert output.relative == pytest.approx(distance / math.sqrt(sum(np.square(a).sum() for a in train)), rel=1e-5)
    assert output.changed == sum((a.argmax(1) != b.argmax(1)).sum() for a, b in zip(train, infer, strict=True))
    assert output.samples == 70


def test_outputs_that_are_no_answers_have_a_distance_only(rng):
    output = fastbn.doctor(settled(nn.BatchNorm2d(3)), [images(rng)]).output
    assert output.changed is None
    assert output.relative > 0


UNITS = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), "1"),
    "fused": (lambda: fastbn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())), "1"),
    "one unit": (lambda: nn.ConvBnReLU2d(3, 4, 3, bias=True), "bn"),
    "folded while training": (lambda: nn.Sequential(nn.ConvBn2d(3, 4, 3, bias=True)), "0.bn"),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.BatchNorm2d(4))), "1.0"),
    "residual": (lambda: nn.Residual({"c": nn.Conv2d(3, 3, 3, padding=1), "bn": nn.BatchNorm2d(3)}), "bn"),
}


@pytest.mark.parametrize("unit", UNITS)
def test_batch_norms_in_units_are_seen_as_those_outside(unit, rng):
    """Each finds its bias, and the gap that the same layers have one by one."""
    make, name = UNITS[unit]
    model = settled(make())
    conv, norm = (next(m for m in model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.BatchNorm2d))
    x = images(rng)
    diagnosis = fastbn.doctor(model, batched(x))
    [listed] = diagnosis.batch_norms
    assert listed.layer == name
    assert sorted(kinds(diagnosis)) == ["gap", "useless-bias"]
    alone = fastbn.doctor(norm, batched(conv(x)))
    assert listed.gap == pytest.approx(alone.batch_norms[0].gap, rel=1e-4)
    assert diagnosis.output.relative > 0.05


@pytest.mark.parametrize("mode", ["batch", "corrected"])
def test_quantised_units(mode, rng):
    unit = nn.ConvBn2d(3, 4, 3, mode=mode, weight_quantizer=lambda weight: np.round(4 * weight) / 4)
    diagnosis = fastbn.doctor(settled(unit), batched(images(rng)))
    assert kinds(diagnosis) == ["gap"]
    unit.fold_()
    assert fastbn.doctor(unit).batch_norms == ()


def test_only_batch_norms_that_training_moves_have_a_gap(rng):
    model = nn.Sequential(
        nn.BatchNorm1d(3, frozen=True), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3), nn.Dropout(0.5)
    )
    diagnosis = fastbn.doctor(settled(model), [images(rng, shape=(3,))])
    assert [norm.gap is None for norm in diagnosis.batch_norms] == [True, True, False]
    assert [norm.frozen for norm in diagnosis.batch_norms] == [True, False, False]


def test_a_layer_that_is_used_twice_has_no_useless_bias(rng):
    linear = nn.Linear(3, 3)
    model = settled(nn.Sequential(linear, nn.BatchNorm1d(3), nn.ReLU(), linear))
    assert fastbn.doctor(model).findings == ()


def test_a_sick_model_is_not_run():
    model = network()
    model.bn.running_var[...] = -1
    diagnosis = fastbn.doctor(model, [images(np.random.default_rng(0))])
    assert kinds(diagnosis) == ["negative-variance"]
    assert diagnosis.output is None


def test_weights_that_are_not_finite_leave_no_figures(rng):
    model = network()
    model.conv.weight.data[0] = np.nan
    diagnosis = fastbn.doctor(model, [images(rng)])
    assert (diagnosis.batch_norms[0].gap, diagnosis.output.relative) == (None, None)
    assert "an output that is no number" in str(diagnosis)
    json.dumps(asdict(diagnosis), allow_nan=False)


def test_float64(rng):
    model = settled(nn.BatchNorm1d(3)).double()
    assert kinds(fastbn.doctor(model, batched(images(rng, shape=(3,)).astype(np.float64)))) == ["gap"]


# What stays, and refusals


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_model_is_left_as_it_was(mode, rng):
    model, x = getattr(network(), mode)(), images(rng)
    seen = []
    model.bn.register_forward_hook(lambda module, x, y: seen.append(x.shape))
    model.relu.training = not model.relu.training
    model(x)
    model.fc.weight.accumulate(np.ones_like(model.fc.weight.data))
    before = state(model), [module.training for module in model.modules()], model.bn._saved
    fastbn.doctor(model, batched(x))
    for name, array in state(model).items():
        np.testing.assert_array_equal(array, before[0][name])
    assert [module.training for module in model.modules()] == before[1]
    assert model.bn._saved is before[2]
    assert model.bn.momentum == 0.1
    assert model.fc.weight.grad.sum() == model.fc.weight.size
    assert len(seen) == 1


@pytest.mark.parametrize("batches", [[], iter(()), [np.empty((0, 3, 6, 6), np.float32)]])
def test_no_samples(batches):
    with pytest.raises(ArgumentError, match=r"^doctor: batches must hold at least one sample, got none$"):
        fastbn.doctor(network(), batches)


def test_what_is_no_model():
    with pytest.raises(DtypeError, match=r"^doctor: model must be a fastbn.nn.Module, got str$"):
        fastbn.doctor("model.safetensors")


def test_a_batch_that_the_model_refuses():
    with pytest.raises(ShapeError, match="conv2d: weight must have shape"):
        fastbn.doctor(network(), [np.ones((4, 2, 6, 6), np.float32)])


# As text


def test_the_table():
    model = network(bias=True)
    model.bn.weight.data[...] = 0
    lines = str(fastbn.doctor(model)).splitlines()
    assert lines[0] == "batch norms   1, 1 with warnings"
    assert lines[1].split("  ")[1:3] == ["batch norm", "channels"]
    assert lines[2].split()[:8] == ["bn", "8", "1e-05", "0.1", "1,000", "0", "..", "0"]
    assert [line.split()[0] for line in lines[3:]] == ["warning", "note", "healthy"]
    assert lines[-1] == "healthy       NO: 1 warning, 1 note"


def test_what_many_layers_have_is_counted():
    layers = [layer for _ in range(SHOWN + 3) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
    lines = str(fastbn.doctor(settled(nn.Sequential(*layers)))).splitlines()
    assert sum(line.startswith("note ") for line in lines) == SHOWN + 1
    assert "note          3 more with useless-bias" in lines
    assert lines[-1] == f"healthy       yes: {SHOWN + 3} notes"


def test_momentum_in_words():
    model = settled(nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, frozen=True)))
    rows = [line.split() for line in str(fastbn.doctor(model)).splitlines()[2:4]]
    assert [row[3] for row in rows] == ["mean", "frozen"]


def test_at_a_terminal_what_is_wrong_stands_out():
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    model = network()
    model.bn.momentum = 1.0
    stream = Terminal()
    print_diagnosis(fastbn.doctor(model), stream)
    assert "batch norms   1, 1 with warnings" in stream.getvalue()
    assert "healthy       NO: 1 warning" in stream.getvalue()
