"""Checkpoints: what is saved comes back bit for bit, and any other file is refused in one sentence."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fastbn
from fastbn import nn
from fastbn.errors import FastbnError, ModelError
from fastbn.training import checkpoint


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def nested():
    block = nn.Residual(
        {"conv1": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), "bn1": nn.BatchNorm2d(6).freeze()},
        downsample=nn.Sequential({"conv": nn.Conv2d(4, 6, (1, 1), stride=2), "bn": nn.BatchNorm2d(6, eps=1e-3)}),
        activation=nn.ReLU(),
    )
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", groups=2),
        nn.BatchNorm2d(4, momentum=None),
        nn.Sigmoid(),
        nn.ReLU6(),
        nn.Dropout(0.3, seed=7),
        nn.MaxPool2d((2, 1), ceil_mode=True),
        block,
        nn.Residual(nn.Identity()),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 3, bias=False),
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.Linear(3, 2),
    )


def double_without_affine():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)).double()


def mixed():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).double(), nn.Linear(3, 1).double())


def folded():
    return fastbn.fold(nested())


MODELS = {
    "nested": nested,
    "float64": lambda: nested().double(),
    "float64 without affine": double_without_affine,
    "mixed": mixed,
    "folded": folded,
    "one layer": lambda: nn.Linear(2, 3),
    "1 and 3 axes": lambda: nn.Sequential(nn.Conv1d(4, 2, 3, groups=2), nn.Conv3d(1, 2, (1, 2, 3), bias=False)),
    "folded in training": lambda: nn.Sequential(nn.ConvBn1d(2, 4, 3, mode="corrected", relu=True), nn.LinearBn1d(2, 3)),
    "batch norm 3d": lambda: nn.BatchNorm3d(2),
    "no arrays": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    "empty": nn.Sequential,
    "odd names": lambda: nn.Sequential({name: nn.Linear(1, 1) for name in ("ä b", ":c", "__metadata__")}),
    "pairs": lambda: nn.Sequential(nn.Conv2d(1, 1, [3, 1], padding=[1, 0]), nn.MaxPool2d((2, 2), (1, 2))),
}


def randomize(model, rng):
    for parameter in model.parameters():
        parameter.unlock()
    for name, array in model.state_dict().items():
        array[...] = 7 if "tracked" in name else rng.uniform(0.5, 2, array.shape)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back_bit_for_bit(name, path, rng):
    model = randomize(MODELS[name](), rng)
    fastbn.save(model, path)
    loaded = fastbn.load(str(path))
    assert list(loaded.state_dict()) == list(model.state_dict())
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[key], array, err_msg=key, strict=True)
    assert repr(loaded) == repr(model)
    assert not any(module.training for module in loaded.modules())


def test_a_loaded_model_gives_the_same_bits_and_can_be_trained(path, rng):
    model = randomize(nested(), rng)
    fastbn.save(model, path)
    loaded = fastbn.load(path)
    x = rng.normal(size=(3, 2, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model.eval()(x))
    y = loaded.train()(x)
    assert loaded.backward(np.ones_like(y)).shape == x.shape
    assert loaded[6].bn1.frozen


def test_options_may_be_numpys_numbers(path):
    norm = nn.BatchNorm1d(np.int32(3), eps=np.float32(1e-3), momentum=np.float64(0.2))
    fastbn.save(nn.Sequential(nn.Linear(np.prod((2, 3)), np.int64(3)), norm), path)
    linear, loaded = fastbn.load(path)
    assert linear.weight.shape == (3, 6)
    assert (loaded.num_features, loaded.eps, loaded.momentum) == (3, norm.eps, 0.2)


def test_weights_that_lie_otherwise_are_saved_by_value(path, rng):
    model = nn.Linear(3, 4)
    model.weight.data = np.asfortranarray(model.weight.data)
    fastbn.save(model, path)
    np.testing.assert_array_equal(fastbn.load(path).weight.data, model.weight.data)


def test_the_arrays_are_readable_by_anyone_under_their_names(path):
    model = nested()
    fastbn.save(model, path)
    arrays = load_file(path)
    assert set(arrays) == set(model.state_dict())
    assert arrays["1.num_batches_tracked"].shape == ()


def test_saving_leaves_the_model_alone(path, rng):
    model = nested().train()
    model(rng.normal(size=(2, 2, 8, 8)).astype(np.float32))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    fastbn.save(model, path)
    assert all(module.training for module in model.modules())
    assert model[0]._saved is not None
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)


def test_saving_writes_over_a_file_and_leaves_nothing_else(path):
    path.write_text("old")
    fastbn.save(nn.Linear(1, 1), path)
    assert isinstance(fastbn.load(path), nn.Linear)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_has_the_permissions_of_any_new_file(path):
    plain = path.with_name("plain")
    plain.write_text("")
    fastbn.save(nn.ReLU(), path)
    assert path.stat().st_mode == plain.stat().st_mode


# Files of another kind


def assert_refused(path):
    with pytest.raises(ModelError) as caught:
        fastbn.load(path)
    assert_sentence(caught.value)


def assert_sentence(error):
    text = str(error)
    assert "\n" not in text
    assert " must " in text
    assert " got " in text


def saved_bytes(path):
    fastbn.save(nn.Linear(3, 3), path)
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, -1])
def test_a_truncated_file_is_refused(path, size):
    path.write_bytes(saved_bytes(path)[:size])
    assert_refused(path)


OTHERS = {
    "pickle": pickle.dumps({"weight": [1.0, 2.0]}),
    "pickle protocol 0": pickle.dumps({"weight": [1.0, 2.0]}, protocol=0),
    "text": b"not a model\n" * 50,
    "zeros": bytes(1000),
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_refused(path, kind):
    path.write_bytes(OTHERS[kind])
    assert_refused(path)


def test_bytes_after_the_end_are_refused(path):
    path.write_bytes(saved_bytes(path) + b"more")
    assert_refused(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "fastbn.v1"}, {"format": "fastbn.v999"}])
def test_safetensors_without_the_header_are_refused(path, metadata):
    save_file({"weight": np.zeros((3, 3), np.float32)}, path, metadata=metadata)
    assert_refused(path)


def test_another_version_of_the_format_is_refused(path):
    header = {"format": "fastbn.v999", "model": json.dumps({"type": "ReLU", "options": {}}), "extra": "{}"}
    save_file({}, path, metadata=header)
    assert_refused(path)


def test_what_is_not_there_or_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path / "missing.safetensors")
    assert_refused(tmp_path)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2", "BOOL", "C64", "none such"])
def test_an_array_of_an_unknown_type_is_refused(path, kind):
    size = {"BF16": 2, "C64": 8}.get(kind, 1)
    arrays = {"weight": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}
    header = {"format": checkpoint.FORMAT, "model": json.dumps({"type": "ReLU", "options": {}}), "extra": "{}"}
    text = json.dumps({"__metadata__": header, **arrays}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    assert_refused(path)


def test_a_changed_byte_never_gives_anything_but_a_model_or_a_model_error(path, rng):
    good = bytearray(saved_bytes(path))
    for place in rng.integers(0, len(good) - 48, 150):  # the rest are values
        spoiled = good.copy()
        spoiled[place] = rng.choice([0, 10, 34, 92, 123, 255])
        path.write_bytes(spoiled)
        try:
            assert isinstance(fastbn.load(path), nn.Linear)
        except ModelError as error:
            assert_sentence(error)


# Headers that mean harm


def write(path, model, arrays=None, extra="{}"):
    text = model if isinstance(model, str) else json.dumps(model)
    save_file(arrays or {}, path, metadata={"format": checkpoint.FORMAT, "model": text, "extra": extra})


def layer(kind, **options):
    return {"type": kind, "options": options}


def deep(levels):
    return '{"type":"Sequential","options":{},"children":{"a":' * levels + json.dumps(layer("ReLU")) + "}}" * levels


HOSTILE = {
    "import": layer("__import__"),
    "dotted": layer("os.system"),
    "a function": layer("init"),
    "not a layer": layer("Parameter"),
    "a loss": layer("CrossEntropyLoss"),
    "the base class": layer("Module"),
    "type a list": layer(["ReLU"]),
    "type null": layer(None),
    "type with a line break": layer("a\nb"),
    "text": '"ReLU"',
    "null": "null",
    "number": "5",
    "list": "[]",
    "no json": "{",
    "no type": {"options": {}},
    "no options": {"type": "ReLU"},
    "options null": {"type": "ReLU", "options": None},
    "options a list": {"type": "ReLU", "options": ["x"]},
    "unknown option": layer("Linear", in_features=2, out_features=2, target="x"),
    "option with a line break": layer("ReLU", **{"a\nb": 1}),
    "missing option": layer("Linear", in_features=2),
    "negative option": layer("Linear", in_features=-2, out_features=2),
    "option of another type": layer("BatchNorm2d", num_features=2, eps="0"),
    "not a number": '{"type": "BatchNorm2d", "options": {"num_features": 2, "eps": NaN}}',
    "children a list": {**layer("Sequential"), "children": [layer("ReLU")]},
    "children null": {**layer("Sequential"), "children": None},
    "child a number": {**layer("Sequential"), "children": {"a": 5}},
    "dotted child": {**layer("Sequential"), "children": {"a.b": layer("ReLU")}},
    "child with a line break": {**layer("Sequential"), "children": {"a\n.b": layer("ReLU")}},
    "very deep": deep(100_000),
    "deep": deep(600),
    "more memory than there is": layer("Linear", in_features=10**7, out_features=10**7),
    "more than numpy can count": layer("Linear", in_features=10**12, out_features=10**12),
    "a long list of channels": layer("BatchNorm1d", num_features=10**14),
    "arrays missing": layer("Linear", in_features=2, out_features=2),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(path, case):
    write(path, HOSTILE[case])
    assert_refused(path)


def test_a_header_that_promises_what_the_file_does_not_hold_takes_no_memory(path):
    write(path, layer("Linear", in_features=2000, out_features=2000))  # 16 MB
    tracemalloc.start()
    try:
        assert_refused(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("extra", ["{", "", "[" * 100_000])
def test_bad_extra_json_is_refused(path, extra):
    write(path, layer("ReLU"), extra=extra)
    assert_refused(path)


@pytest.mark.parametrize("name", ["weight", "a\nb", "a" * 1000])
def test_arrays_that_the_model_does_not_have_are_refused(path, name):
    write(path, layer("ReLU"), {name: np.zeros(2, np.float32)})
    assert_refused(path)


def test_arrays_of_another_shape_are_refused(path):
    arrays = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    write(path, layer("Linear", in_features=2, out_features=3), arrays)
    assert_refused(path)


@pytest.mark.parametrize("levels", [1, 20, 100])
def test_what_is_nested_within_reason_is_read(path, levels):
    write(path, deep(levels))
    assert len(list(fastbn.load(path).modules())) == levels + 1


# Models that cannot be saved


class Own(nn.ReLU):
    pass


def shared():
    activation = nn.ReLU()
    return nn.Sequential(activation, nn.Linear(1, 1), activation)


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


UNSAVEABLE = {
    "a class of one's own": (lambda: nn.Sequential(nn.ReLU(), Own()), "model.1 must be a layer of fastbn.nn, got Own"),
    "a shared layer": (shared, "must occur once in the model, got one in two places"),
    "a shared parameter": (tied, "must occur once"),
    "no model": (lambda: {"weight": np.zeros(1)}, "got dict"),
}


@pytest.mark.parametrize("case", UNSAVEABLE)
def test_what_could_not_be_loaded_again_is_not_saved(path, case):
    make, sentence = UNSAVEABLE[case]
    path.write_text("old")
    with pytest.raises(FastbnError) as caught:
        fastbn.save(make(), path)
    assert sentence in str(caught.value)
    assert_sentence(caught.value)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


# Places that cannot be written


def assert_not_written(path):
    with pytest.raises(ModelError) as caught:
        fastbn.save(nn.Linear(2, 2), path)
    assert_sentence(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    assert_not_written(tmp_path / "none" / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_files_place(tmp_path):
    assert_not_written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place(path):
    path.write_text("old")
    assert_not_written(path / "model.safetensors")
    assert path.read_text() == "old"


@pytest.mark.parametrize("place", ["tempfile.mkstemp", "os.replace", "os.chmod"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError("no reason given")])
def test_a_folder_that_cannot_be_written(path, place, error, monkeypatch):
    path.write_text("old")

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(place, refuse)
    assert_not_written(path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


FULL_DISK = """
import resource, signal, sys
import numpy as np
import fastbn
from fastbn.errors import ModelError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    fastbn.save(fastbn.nn.Linear(100, 100), sys.argv[1])
except ModelError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_no_other(path):
    pytest.importorskip("resource")
    path.write_text("old")
    root = str(Path(fastbn.__file__).parents[1])
    command = [sys.executable, "-B", "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    assert f"{path} must be writable, got" in done.stdout
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_in_the_middle_removes_the_temporary_file(path, monkeypatch):
    path.write_text("old")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fastbn.save(nn.Linear(2, 2), path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
