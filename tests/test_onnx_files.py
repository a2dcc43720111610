"""ONNX files in and out: whatever is wrong with one is a sentence, and a file appears whole or not at all."""

import hashlib
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models import BN, conv_bn, initializers, random_feeds, run_onnxruntime, text_model

import export.files
from export import fold_onnx, verify
from export.files import as_model, read_model, writing
from fastbn.errors import ModelError


def good():
    return conv_bn(np.random.default_rng(0))[0]


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


def snapshot(folder):
    """Every file below ``folder`` and what it holds."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def assert_one_sentence(caught):
    assert "must" in str(caught.value)
    assert "got" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Reading


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_read(tmp_path, kind):
    model = good()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert ir.to_proto(read_model(kind(path))).graph.node == model.graph.node
    assert ir.to_proto(as_model(kind(path))).graph.node == model.graph.node


CONTENTS = {
    "empty": b"",
    "text": b"# not a model\nprint('hello')\n" * 20,
    "ONNX as text": onnx.printer.to_text(good()).encode(),
    "JSON": b'{"irVersion": "8"}',
    "a zip file": b"PK\x03\x04" + bytes(200),
    "zeros": bytes(1000),
    "random bytes": np.random.default_rng(0).bytes(1000),
    "a version alone": b"\x08\x08",
    **{
        f"the first {share:.0%}": good().SerializeToString()[: int(share * good().ByteSize())]
        for share in (0.2, 0.6, 0.95)
    },
    "all but the last byte": good().SerializeToString()[:-1],
}


@pytest.mark.parametrize("read", [read_model, fold_onnx, as_model])
@pytest.mark.parametrize("case", CONTENTS)
def test_file_that_is_no_model(tmp_path, case, read):
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENTS[case])
    with pytest.raises(ModelError, match=r"model.onnx must be an ONNX model, got \S") as caught:
        read(path)
    assert_one_sentence(caught)
    assert path.read_bytes() == CONTENTS[case]


@pytest.mark.parametrize("read", [read_model, fold_onnx])
def test_no_file(tmp_path, read):
    with pytest.raises(ModelError, match=r"model.onnx must be an ONNX file, got no file"):
        read(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"must be an ONNX file, got a folder"):
        read(tmp_path)


def test_every_truncation_and_random_damage_is_a_model_error_or_a_model(tmp_path):
    """Damage that leaves a readable model may fold; anything else must be a ModelError, never another exception."""
    rng = np.random.default_rng(0)
    whole = good().SerializeToString()
    path = tmp_path / "model.onnx"
    damaged = [whole[:length] for length in range(0, len(whole), 17)]
    for _ in range(400):
        content = bytearray(whole)
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 4))
        content[start : start + length] = rng.bytes(int(rng.integers(0, 4)))
        damaged.append(bytes(content))
    outcomes = {"folded": 0, "refused": 0}
    for content in damaged:
        path.write_bytes(content)
        try:
            fold_onnx(path)
            outcomes["folded"] += 1
        except ModelError:
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}; for the bytes {content.hex()}")
    assert min(outcomes.values()) > 20


def external(folder, name="model.onnx", data="model.data"):
    """A model whose weights lie in another file; all but one batch norm fold."""
    rng = np.random.default_rng(0)
    _, arrays = conv_bn(rng)
    more = {name + "2": array for name, array in arrays.items()}
    more["W2"] = rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
    body = """
        c = Conv(x, W) h = BatchNormalization(c, s, b, m, v)
        d = Conv(h, W2) e = Relu(d) y = BatchNormalization(e, s2, b2, m2, v2)
    """
    model = text_model(body, {**arrays, **more})
    saved = onnx.ModelProto()
    saved.CopyFrom(model)
    onnx.save(saved, folder / name, save_as_external_data=True, size_threshold=0, location=data)
    return model, folder / name


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_weights_in_another_file_that_is_not_right(tmp_path, damage):
    _, path = external(tmp_path)
    data = tmp_path / "model.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[: 10 if damage == "truncated" else 0])
    with pytest.raises(ModelError) as caught:
        fold_onnx(path)
    assert_one_sentence(caught)


def test_proto_without_its_other_file():
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[3, 2, 3, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="nowhere.data")
    model = good()
    model.graph.initializer[0].CopyFrom(tensor)
    with pytest.raises(ModelError) as caught:
        fold_onnx(model)
    assert_one_sentence(caught)


@pytest.mark.parametrize("where", ["../outside.data", "{}/outside.data"])
def test_weights_outside_the_models_folder_are_refused(tmp_path, where):
    """A model from elsewhere must not read any file there is."""
    (tmp_path / "inside").mkdir()
    _, path = external(tmp_path / "inside")
    (tmp_path / "inside" / "model.data").rename(tmp_path / "outside.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = where.format(tmp_path) if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        fold_onnx(path)
    assert_one_sentence(caught)


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


# Writing


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
