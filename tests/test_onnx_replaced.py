"""Weights that lie beside a model already: replaced only where no other model reads them, with it or not at all."""

import hashlib
import os
from pathlib import Path

import onnx
import pytest
from onnx_files import assert_one_sentence, external, large, snapshot

import export.files.weights
import export.fold
from export import fold_onnx, verify
from export.files import as_model, read_model, save, writing
from fastbn.errors import ModelError


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(export.files.weights, "INLINE_LIMIT", 10)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("there", [False, True])
def test_large_model_that_fails_leaves_nothing_and_changes_nothing(tmp_path, there):
    path = tmp_path / "model.onnx"
    if there:
        with writing(as_model(large()), path):
            pass
    before = snapshot(tmp_path)
    with pytest.raises(ZeroDivisionError), writing(as_model(large(2.0)), path):
        raise ZeroDivisionError
    assert snapshot(tmp_path) == before


def test_weights_are_not_saved_over_themselves(tmp_path):
    _, path = external(tmp_path, "model.onnx", "model.onnx.data")
    before = snapshot(tmp_path)
    with pytest.raises(ModelError, match=r"must not replace .*model.onnx.data, got a source that reads it"):
        save(read_model(path), path)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("small_limit")
def test_large_weights_do_not_take_the_place_of_the_sources(tmp_path):
    """The source's weights happen to have the name that the target's would get."""
    _, path = external(tmp_path, "source.onnx", "model.onnx.data")
    before = snapshot(tmp_path)
    model = read_model(path)
    export.fold.fold_graph(model)
    try:
        with writing(model, tmp_path / "model.onnx"):
            pass
    except ModelError:
        pass
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("small_limit")
def test_large_weights_do_not_take_the_place_of_those_of_a_copy(tmp_path):
    """``cp model.onnx source.onnx`` copies the graph alone: both read model.onnx.data."""
    _, path = external(tmp_path, "model.onnx", "model.onnx.data")
    source = tmp_path / "source.onnx"
    source.write_bytes(path.read_bytes())
    want = fold_onnx(source)[0]
    model = read_model(source)
    export.fold.fold_graph(model)
    try:
        with writing(model, path):
            pass
    except ModelError:
        pass
    assert fold_onnx(source)[0] == want


def write_large(path, factor=1.0):
    with writing(as_model(large(factor)), path):
        pass


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("name", ["model.onnx", "m" * 150 + ".onnx", "modèle.onnx"])
def test_written_again(tmp_path, name):
    """What an earlier run wrote under the same name is replaced, the model and its weights, and nothing beside it."""
    path = tmp_path / name
    write_large(path, 1.0)
    write_large(tmp_path / f"my{name}", 3.0)
    write_large(path, 2.0)
    assert snapshot(tmp_path).keys() == {f"{start}{name}{end}" for start in ("", "my") for end in ("", ".data")}
    assert verify(large(2.0), path).ok
    assert verify(large(3.0), tmp_path / f"my{name}").ok


def reads_it_too(path):
    """Another model that reads the same weights under a name of its own."""
    other = onnx.load(path, load_external_data=False)
    for tensor in other.graph.initializer:
        for entry in tensor.external_data:
            entry.value = f"./{entry.value}" if entry.key == "location" else entry.value
    path.with_name("copy.onnx").write_bytes(other.SerializeToString())


OTHERS = {
    "weights of a model that says it otherwise": (reads_it_too, "must not replace .*, which may read it"),
    "nobody's weights": (lambda path: path.unlink(), r"model.onnx.data must be free .* got another file; remove it"),
    "weights of no model": (lambda path: path.write_bytes(b"text"), "must be free for the weights"),
    "an empty model": (lambda path: path.write_bytes(b""), "must be free for the weights"),
    "weights of another model too": (
        lambda path: path.with_name("copy.onnx").write_bytes(path.read_bytes()),
        r"must not replace .*model.onnx.data, got .*copy.onnx, which may read it as well",
    ),
    "weights of another model": (
        lambda path: path.rename(path.with_name("copy.onnx")),
        r"must not replace .*model.onnx.data, got .*copy.onnx, which may read it as well",
    ),
}


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", OTHERS)
def test_weights_that_another_may_read_are_not_replaced(tmp_path, case, late):
    """Neither those that are there at first nor those that appear while the model is proved."""
    change, sentence = OTHERS[case]
    path = tmp_path / "model.onnx"
    write_large(path)
    if not late:
        change(path)
    before = snapshot(tmp_path)
    with pytest.raises(ModelError, match=sentence) as caught, writing(as_model(large(2.0)), path):
        before = prove(change if late else None, path)
    assert_one_sentence(caught)
    assert snapshot(tmp_path) == before


def prove(change, path):
    """What happens while a model is proved, and what lies beside ``path`` then."""
    assert change is not None
    change(path)
    files = [other for other in path.parent.iterdir() if other.is_file()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("there", [False, True])
def test_model_and_weights_appear_together_or_not_at_all(tmp_path, monkeypatch, there):
    path = tmp_path / "model.onnx"
    if there:
        write_large(path)
    before = snapshot(tmp_path)
    replace = os.replace

    def fail(source, target):
        if Path(target) == path:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match=r"model.onnx must be writable, got Input/output error"):
        write_large(path, 2.0)
    assert snapshot(tmp_path) == before
