"""ONNX files written: what was read comes out again, whole or not at all, and large weights one by one."""

import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_files import assert_one_sentence, external, good, snapshot
from onnx_models import BN, conv_bn, initializers, random_feeds, run_onnxruntime, text_model

import export.files.weights
from export import fold_onnx, verify
from export.files import as_model, read_model, writing
from fastbn.errors import ModelError


def unknown_operator():
    model = good()
    model.graph.node[0].op_type = "Nonsense"
    return model


def names_nothing():
    model = good()
    model.graph.node[0].input[0] = "nowhere"
    return model


def sizes_that_do_not_fit():
    model = good()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "s"))
    return model


def test_write_and_read_back(tmp_path):
    path = tmp_path / "model.onnx"
    with writing(as_model(good()), path) as temporary:
        assert temporary.parent.parent == tmp_path
        assert not path.exists()
        onnx.checker.check_model(str(temporary))
    assert snapshot(tmp_path).keys() == {"model.onnx"}
    assert initializers(onnx.load(path)).keys() == initializers(good()).keys()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("make", [unknown_operator, sizes_that_do_not_fit])
def test_invalid_model_is_not_written(tmp_path, make, there):
    path = tmp_path / "model.onnx"
    if there:
        path.write_text("what was there before")
    before = snapshot(tmp_path)
    with (
        pytest.raises(ModelError, match=r"model.onnx must be valid ONNX, got \S") as caught,
        writing(as_model(make()), path),
    ):
        pytest.fail("an invalid model must not be handed out to be proved")
    assert_one_sentence(caught)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [ModelError("not the same network"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_after_a_failure(tmp_path, there, error):
    path = tmp_path / "model.onnx"
    if there:
        path.write_text("what was there before")
    before = snapshot(tmp_path)
    with pytest.raises(type(error)), writing(as_model(good()), path):
        raise error
    assert snapshot(tmp_path) == before


def test_failure_of_the_proof_keeps_its_own_words(tmp_path):
    """A file that the caller's proof misses is not a target that cannot be written."""
    with pytest.raises(Exception, match=r"weights\.npy") as caught, writing(as_model(good()), tmp_path / "model.onnx"):
        (tmp_path / "weights.npy").read_bytes()
    assert "must be writable" not in str(caught.value)


def test_missing_folder(tmp_path):
    with (
        pytest.raises(ModelError, match=r"must be in a folder that exists, got no .*missing"),
        writing(as_model(good()), tmp_path / "missing" / "model.onnx"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(ModelError, match="must be a file, got a folder"), writing(as_model(good()), tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fold", [False, True])
def test_weights_in_another_file_move_along(tmp_path, fold):
    """Written to another folder, the model still runs, and the source's files are as they were."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    model, path = external(tmp_path / "from")
    before = snapshot(tmp_path / "from")
    read = read_model(path)
    if fold:
        report = export.fold.fold_graph(read)
        assert report.folded == 1
    with writing(read, tmp_path / "to" / "out.onnx"):
        pass
    assert snapshot(tmp_path / "from") == before
    path.unlink()
    (tmp_path / "from" / "model.data").unlink()
    feeds = random_feeds(model, np.random.default_rng(1))
    [want], [got] = run_onnxruntime(model, feeds), run_onnxruntime(str(tmp_path / "to" / "out.onnx"), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Models beyond protobuf's 2 GB, tried with a limit of a few bytes


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(export.files.weights, "INLINE_LIMIT", 10)


def large(factor=1.0):
    rng = np.random.default_rng(0)
    _, arrays = conv_bn(rng, channels=40)
    arrays["W"] *= np.float32(factor)
    return text_model(f"c = Conv(x, W) {BN}", arrays)


@pytest.mark.usefixtures("small_limit")
def test_large_weights_go_beside_the_model(tmp_path):
    path = tmp_path / "model.onnx"
    with writing(as_model(large()), path) as temporary:
        assert verify(large(), temporary).ok
    assert snapshot(tmp_path).keys() == {"model.onnx", "model.onnx.data"}
    assert path.stat().st_size < initializers(large())["W"].nbytes <= (tmp_path / "model.onnx.data").stat().st_size
    assert verify(large(), path).ok


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
