"""The training loop: it learns, repeats itself bit for bit, resumes, says what is wrong and is silent otherwise."""

import io
import json

import numpy as np
import pytest
from helpers import assert_close

import fastbn
from fastbn import nn, optim
from fastbn.errors import ArgumentError, DtypeError, FastbnError, ModelError, ShapeError, StateError
from fastbn.training import checkpoint

CLASSES = 4
EPOCHS = 4


@pytest.fixture
def data(rng):
    """Noisy pictures of four patterns: 70 to train on, so that the last of the batches of 16 holds 6."""
    patterns = rng.normal(size=(CLASSES, 1, 6, 6))
    labels = rng.integers(0, CLASSES, 100)
    images = (patterns[labels] + 0.7 * rng.normal(size=(100, 1, 6, 6))).astype(np.float32)
    return (images[:70], labels[:70]), (images[70:], labels[70:])


def small():
    fastbn.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)
    )


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw": lambda p: optim.AdamW(p, lr=0.02),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}
SCHEDULES = {
    "constant": lambda o: None,
    "step": lambda o: optim.StepLR(o, 2, 0.1),
    "cosine": lambda o: optim.CosineAnnealingLR(o, EPOCHS),
    "one cycle": lambda o: optim.OneCycleLR(o, 0.1, EPOCHS * BATCHES),
}
BATCHES = 5  # of 16 in 70 samples


def run(train, *, model=None, optimizer="sgd", schedule="constant", epochs=EPOCHS, **options):
    """(model, optimizer, history) of a fresh run."""
    model = small() if model is None else model
    opt = OPTIMIZERS[optimizer](model.parameters())
    history = fastbn.fit(
        model, train, epochs=epochs, optimizer=opt, batch_size=16, scheduler=SCHEDULES[schedule](opt), **options
    )
    return model, opt, history


def assert_same_bits(got, want):
    for name, array in want.state_dict().items():
        np.testing.assert_array_equal(got.state_dict()[name], array, err_msg=name, strict=True)


def figures(history):
    return [(e.loss, e.accuracy, e.lr, e.val_loss, e.val_accuracy) for e in history]


# Learning


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls_and_the_answers_become_right(data, optimizer):
    train, test = data
    model, _, history = run(train, optimizer=optimizer, validation=test)
    assert len(history) == EPOCHS
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].accuracy > 0.9
    assert history[-1].val_accuracy > 0.8
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_epoch_is_the_loop_written_out(data):
    """The order is drawn anew in every epoch; the loss is the mean over samples, not over batches."""
    (inputs, labels), _ = data
    model, _, history = run((inputs, labels), epochs=2, seed=5)
    twin = small()
    optimizer = OPTIMIZERS["sgd"](twin.parameters())
    criterion = nn.CrossEntropyLoss()
    for number in range(2):
        order = np.random.default_rng([5, number]).permutation(70)
        total, correct = 0.0, 0
        for start in range(0, 70, 16):
            batch = order[start : start + 16]
            twin.zero_grad()
            output = twin(inputs[batch])
            total += criterion(output, labels[batch]) * len(batch)
            correct += int((output.argmax(axis=1) == labels[batch]).sum())
            twin.backward(criterion.backward())
            optimizer.step()
        np.testing.assert_allclose(history[number].loss, total / 70, rtol=1e-12)
        assert history[number].accuracy == correct / 70
    assert_same_bits(model, twin)


def test_without_validation_there_are_no_such_figures(data):
    train, _ = data
    _, _, (epoch,) = run(train, epochs=1)
    assert (epoch.val_loss, epoch.val_accuracy) == (None, None)
    assert epoch.seconds > 0
    assert epoch.lr == 0.1


def test_no_epochs_is_no_change(data):
    train, _ = data
    model, _, history = run(train, epochs=0)
    assert len(history) == 0
    assert not model.training
    assert_same_bits(model, small())


def test_on_epoch_gets_the_number_and_the_figures(data):
    train, test = data
    calls = []
    _, _, history = run(train, validation=test, on_epoch=lambda number, epoch: calls.append((number, epoch)))
    assert calls == list(enumerate(history))


def test_validation_figures_are_evaluates(data):
    train, test = data
    model, _, history = run(train, validation=test)
    assert fastbn.evaluate(model, test) == (history[-1].val_loss, history[-1].val_accuracy)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_evaluate_is_the_mean_over_samples_and_changes_nothing(data, batch_size):
    _, (inputs, labels) = data
    model = small()
    model(inputs)  # running statistics of some kind
    before = {name: array.copy() for name, array in model.state_dict().items()}
    loss, accuracy = fastbn.evaluate(model.train(), (inputs, labels), batch_size=batch_size)
    assert not model.training
    output = model(inputs)
    assert_close(loss, nn.CrossEntropyLoss()(output, labels), np.float32)
    assert accuracy == np.mean(output.argmax(axis=1) == labels)
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)


class Doubled(nn.CrossEntropyLoss):
    """Twice the loss, as the float32 that a NumPy expression would give."""

    def __call__(self, logits, targets):
        return np.float32(2 * super().__call__(logits, targets))

    def backward(self):
        return 2 * super().backward()


def test_a_loss_of_ones_own_serves_training_and_validation(data):
    train, test = data
    model, _, history = run(train, validation=test, loss=Doubled())
    plain, accuracy = fastbn.evaluate(model, test)
    assert_close(history[-1].val_loss, 2 * plain, np.float32)
    assert history[-1].val_accuracy == accuracy


# The same bits


def test_the_same_seed_is_the_same_bits_and_another_is_not(data):
    train, test = data
    first, _, history = run(train, validation=test)
    second, _, again = run(train, validation=test)
    other, _, _ = run(train, seed=1)
    assert_same_bits(second, first)
    assert figures(again) == figures(history)
    assert not np.array_equal(other[0].weight.data, first[0].weight.data)


def test_the_bits_do_not_depend_on_the_threads(rng):
    inputs, labels = rng.normal(size=(64, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 64)
    models = []
    for threads in (1, 2, 7):
        fastbn.set_num_threads(threads)
        fastbn.manual_seed(0)
        models.append(fastbn.models.lenet())
        fastbn.fit(
            models[-1],
            (inputs, labels),
            epochs=1,
            batch_size=32,
            optimizer=optim.SGD(models[-1].parameters(), lr=0.1, momentum=0.9),
        )
    for model in models[1:]:
        assert_same_bits(model, models[0])


class Interrupted(Exception):
    pass


def test_a_schedule_is_stepped_at_its_interval(data):
    train, _ = data
    stepped = []

    class Counting(optim.LRScheduler):
        def factor(self, epoch):
            stepped.append(epoch)
            return 1.0

    for interval, last in (("epoch", 2), ("batch", 2 * BATCHES)):
        model = small()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        scheduler = Counting(optimizer)
        scheduler.interval = interval
        stepped.clear()
        fastbn.fit(model, train, epochs=2, batch_size=16, optimizer=optimizer, scheduler=scheduler)
        assert stepped == list(range(1, last + 1))


def test_gradients_are_clipped_before_the_step(data):
    train, _ = data
    model = small()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    fastbn.fit(model, train, epochs=1, batch_size=70, optimizer=optimizer, max_grad_norm=1e-3)
    moved = [array - before[name] for name, array in model.state_dict().items() if name.endswith(("weight", "bias"))]
    assert np.sqrt(sum(np.sum(np.square(step, dtype=np.float64)) for step in moved)) == pytest.approx(1e-3, rel=0.01)
    with pytest.raises(ArgumentError, match="fit: max_grad_norm must be at least 0, got -1"):
        fastbn.fit(model, train, epochs=1, optimizer=optimizer, max_grad_norm=-1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(data, optimizer, schedule, tmp_path):
    train, test = data
    whole, _, history = run(train, validation=test, optimizer=optimizer, schedule=schedule)
    path = tmp_path / "run.safetensors"

    def interrupt(number, epoch):
        if number == 1:
            raise Interrupted

    options = {"validation": test, "optimizer": optimizer, "schedule": schedule, "checkpoint": path}
    with pytest.raises(Interrupted):
        run(train, **options, on_epoch=interrupt)
    numbers = []
    resumed, _, resumed_history = run(train, **options, resume=True, on_epoch=lambda n, e: numbers.append(n))
    assert numbers == [2, 3]
    assert_same_bits(resumed, whole)
    assert figures(resumed_history) == figures(history)
    assert_same_bits(fastbn.load(path), whole)


def test_resuming_restores_batch_norms_that_are_frozen_or_cumulative(data, tmp_path):
    def build():
        fastbn.manual_seed(0)
        norm = nn.BatchNorm1d(8, momentum=None)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), norm, nn.Linear(8, 4), nn.BatchNorm1d(4, frozen=True))

    train, _ = data
    whole, _, _ = run(train, model=build())
    path = tmp_path / "run.safetensors"
    run(train, model=build(), epochs=2, checkpoint=path)
    resumed, _, _ = run(train, model=build(), checkpoint=path, resume=True)
    assert_same_bits(resumed, whole)


def dropping(*dropouts):
    fastbn.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), *dropouts, nn.Linear(16, CLASSES))


@pytest.mark.parametrize("seed", [None, 5])
def test_a_resumed_run_draws_the_masks_of_an_uninterrupted_one(data, seed, tmp_path):
    def build():
        fastbn.manual_seed(0)
        return dropping(nn.Dropout(0.3, seed), nn.Dropout(0.1, seed))

    train, test = data
    whole, _, _ = run(train, model=build(), validation=test)
    path = tmp_path / "run.safetensors"
    run(train, model=build(), epochs=2, checkpoint=path)
    resumed, _, _ = run(train, model=build(), checkpoint=path, resume=True)
    assert_same_bits(resumed, whole)


def test_a_finished_run_is_not_run_again(data, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    first, _, history = run(train, checkpoint=path)
    calls = []
    again, _, same = run(train, checkpoint=path, resume=True, on_epoch=lambda *args: calls.append(args))
    assert calls == []
    assert figures(same) == figures(history)
    assert_same_bits(again, first)
    assert not again.training


def test_without_resume_a_checkpoint_is_written_over(data, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    run(train, checkpoint=path, seed=9)
    model, _, _ = run(train, checkpoint=path)
    assert_same_bits(fastbn.load(path), model)
    assert list(tmp_path.iterdir()) == [path]


def test_resume_without_a_file_starts_anew(data, tmp_path):
    train, _ = data
    model, _, history = run(train, checkpoint=tmp_path / "none", resume=True, epochs=1)
    assert len(history) == 1
    assert_same_bits(model, run(train, epochs=1)[0])


def test_numpy_numbers_can_be_checkpointed(data, tmp_path):
    train, _ = data
    model = small()
    optimizer = optim.SGD(model.parameters(), lr=np.float32(0.1))
    fastbn.fit(model, train, epochs=1, optimizer=optimizer, loss=Doubled(), checkpoint=tmp_path / "run")
    assert_same_bits(fastbn.load(tmp_path / "run"), model)


def test_another_optimizer_cannot_resume(data, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    run(train, checkpoint=path, epochs=1)
    with pytest.raises(ModelError, match=r"must be a checkpoint of a run with Adam, got one with SGD"):
        run(train, optimizer="adam", checkpoint=path, resume=True)


def test_a_saved_model_is_no_run(data, tmp_path):
    train, _ = data
    path = tmp_path / "model.safetensors"
    fastbn.save(small(), path)
    with pytest.raises(ModelError, match="run with SGD, got one without an optimiser"):
        run(train, checkpoint=path, resume=True)


def test_another_model_cannot_resume_and_is_left_alone(data, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    run(train, checkpoint=path, epochs=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    before = model[1].weight.data.copy()
    with pytest.raises(ModelError, match="load_state_dict: state must have the names of the model"):
        run(train, model=model, checkpoint=path, resume=True)
    np.testing.assert_array_equal(model[1].weight.data, before)


GROUPS = [{"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [*range(6)]}]
SGD = {"type": "SGD", "state": {}, "param_groups": GROUPS}
HOSTILE = {
    "a list": [],
    "optimizer a number": {"optimizer": 5},
    "no type": {"optimizer": {}},
    "type a number": {"optimizer": {"type": 5}},
    "no state": {"optimizer": {"type": "SGD", "param_groups": GROUPS}, "history": "[]"},
    "no groups": {"optimizer": {"type": "SGD", "state": {}}, "history": "[]"},
    "groups a number": {"optimizer": {**SGD, "param_groups": 5}, "history": "[]"},
    "rate a word": {"optimizer": {**SGD, "param_groups": [{**GROUPS[0], "lr": "x"}]}, "history": "[]"},
    "a word for a position": {"optimizer": {**SGD, "state": {"a": {}}}, "history": "[]"},
    "no history": {"optimizer": SGD},
    "history a number": {"optimizer": SGD, "history": 5},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_checkpoint_with_another_run_written_into_it_is_a_model_error(data, case, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    checkpoint.write(path, small(), {}, HOSTILE[case])
    with pytest.raises(ModelError, match="must") as caught:
        run(train, checkpoint=path, resume=True)
    assert "\n" not in str(caught.value)


STATE = np.random.default_rng(0).bit_generator.state
GENERATORS = {
    "none": {},
    "of another layer": {"generators": {"2": STATE}},
    "a list": {"generators": [STATE]},
    "a number": {"generators": {"3": 5}},
    "of another kind": {"generators": {"3": {**STATE, "bit_generator": "MT19937"}}},
    "too large": {"generators": {"3": {**STATE, "state": {"state": 1 << 200, "inc": 1}}}},
    "negative": {"generators": {"3": {**STATE, "uinteger": -1}}},
}


@pytest.mark.parametrize("case", GENERATORS)
def test_a_checkpoint_with_other_generators_is_a_model_error(data, case, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    model = dropping(nn.Dropout(0.3))
    groups = [{**GROUPS[0], "params": [*range(4)]}]
    checkpoint.write(
        path, model, {}, {"optimizer": {**SGD, "param_groups": groups}, "history": "[]"} | GENERATORS[case]
    )
    with pytest.raises(ModelError, match="must hold the state of a run as fit wrote it, got") as caught:
        run(train, model=model, checkpoint=path, resume=True)
    assert "\n" not in str(caught.value)


def test_an_array_with_a_wrong_name_in_a_checkpoint_is_a_model_error(data, tmp_path):
    train, _ = data
    path = tmp_path / "run.safetensors"
    checkpoint.write(path, small(), {":x": np.ones(1, np.float32)}, {"optimizer": SGD, "history": "[]"})
    with pytest.raises(ModelError, match="must"):
        run(train, checkpoint=path, resume=True)


# Batches


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [(33, 16, [16, 16]), (34, 16, [16, 16, 2]), (32, 16, [16, 16]), (5, 100, [5]), (1, 4, [1])],
)
def test_a_last_batch_of_one_is_left_out(samples, batch_size, sizes, rng):
    model = nn.Linear(3, 2)
    inputs = np.arange(3 * samples, dtype=np.float32).reshape(samples, 3)
    seen = []
    model.register_forward_hook(lambda module, x, y: seen.append(x[:, 0]))
    labels = rng.integers(0, 2, samples)
    fastbn.fit(model, (inputs, labels), epochs=1, optimizer=optim.SGD(model.parameters()), batch_size=batch_size)
    assert [len(batch) for batch in seen] == sizes
    assert len(set(np.concatenate(seen).tolist())) == sum(sizes)


# Refusals


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(data, spoil):
    (inputs, labels), _ = data
    inputs = inputs.copy()
    inputs[np.random.default_rng([0, 0]).permutation(70)[20]] = spoil  # in the second batch of the first epoch
    sentence = (
        r"fit: the loss must stay finite, got nan in epoch 1, batch 2 of 5; "
        r"lower the learning rate \(now 0\.1\) or look at the inputs"
    )
    with pytest.raises(StateError, match=sentence):
        run((inputs, labels))


X, Y = np.zeros((4, 1, 6, 6), np.float32), np.zeros(4, np.int64)
BAD_DATA = {
    "lists": (([1.0], [1]), DtypeError),
    "a list of two": ([X, Y], DtypeError),
    "three": ((X, Y, Y), DtypeError),
    "an array": (X, DtypeError),
    "inputs a list": ((X.tolist(), Y), DtypeError),
    "inputs of integers": ((X.astype(int), Y), DtypeError),
    "inputs a number": ((np.zeros((), np.float32), Y), FastbnError),
    "labels a number": ((X, np.zeros((), np.int64)), FastbnError),
    "labels a list": ((X, Y.tolist()), DtypeError),
    "labels of floats": ((X, Y.astype(np.float32)), DtypeError),
    "labels one short": ((X, Y[:3]), ShapeError),
    "labels in a column": ((X, Y[:, None]), ShapeError),
    "labels out of range": ((X, Y + CLASSES), ArgumentError),
    "empty": ((X[:0], Y[:0]), ShapeError),
}


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(data, case, part):
    pair, error = BAD_DATA[case]
    parts = {"train": data[0], "validation": data[1], part: pair}
    with pytest.raises(error, match="must"):
        run(parts.pop("train"), epochs=1, **parts)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"epochs": -1}, ArgumentError, "fit: epochs must be at least 0, got -1"),
        ({"epochs": 1.5}, DtypeError, "fit: epochs must be an integer, got float"),
        ({"seed": -1}, ArgumentError, "fit: seed must be at least 0, got -1"),
    ],
)
def test_bad_options(data, options, error, sentence):
    with pytest.raises(error, match=sentence):
        run(data[0], **options)


def test_bad_batch_sizes(data):
    model = small()
    with pytest.raises(ArgumentError, match="fit: batch_size must be at least 1, got 0"):
        fastbn.fit(model, data[0], epochs=1, optimizer=optim.SGD(model.parameters()), batch_size=0)
    with pytest.raises(ArgumentError, match="evaluate: batch_size must be at least 1, got 0"):
        fastbn.evaluate(model, data[0], batch_size=0)


def test_evaluate_speaks_of_itself():
    with pytest.raises(DtypeError, match=r"^evaluate: data must be a pair of arrays \(inputs, labels\), got list"):
        fastbn.evaluate(small(), [X, Y])


# Progress


def test_nothing_is_printed_without_a_terminal(data, capfd):
    train, test = data
    run(train, validation=test, progress=True)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_a_terminal_gets_a_line_for_every_epoch_if_wanted(data, progress, monkeypatch, capfd):
    train, test = data
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    _, _, history = run(train, validation=test, progress=progress)
    shown = terminal.getvalue()
    if progress:
        for number, epoch in enumerate(history, start=1):
            assert f"epoch {number}/{EPOCHS}" in shown
            assert f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}" in shown
            assert f"test loss {epoch.val_loss:.4f}" in shown
    else:
        assert shown == ""
    assert capfd.readouterr().out == ""


def test_the_bar_is_taken_down_after_an_error(data, monkeypatch):
    (inputs, labels), _ = data
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(StateError):
        run((inputs * np.float32(np.nan), labels))
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


def test_a_checkpoint_holds_the_history_as_json(data, tmp_path):
    train, test = data
    path = tmp_path / "run.safetensors"
    _, _, history = run(train, validation=test, checkpoint=path)
    _, arrays, extra = checkpoint.read(path)
    assert figures(fastbn.History.from_json(extra["history"])) == figures(history)
    assert extra["optimizer"]["type"] == "SGD"
    assert set(arrays) == {f":optimizer.{index}.momentum_buffer" for index in range(6)}
    json.dumps(extra)
