"""Inputs made for a model, and inputs from files: shapes, types, and one sentence for what does not fit."""

import io
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import text_model

from export import load_inputs, verify
from export.data_files import read_samples
from export.proof.inputs import model_inputs, proof_inputs, random_inputs
from fastbn.errors import ModelError


def identity(declared, kind="float"):
    return text_model("y = Identity(x)", {}, x=f"{kind}[{declared}] x", y=f"{kind}[{declared}] y")


def classifier(side):
    """Images of any size as declared; the Gemm takes one."""
    weights = {"W": np.ones((3, 1, 3, 3), np.float32), "G": np.ones((3 * (side - 2) ** 2, 2), np.float32)}
    body = "c = Conv(x, W) f = Flatten(c) y = Gemm(f, G)"
    return text_model(body, weights, x="float[N, 1, H, W_] x", y="float[N, 2] y")


# Made for a model


def test_axes_of_one_name_get_one_length():
    body = "h = Add(ids, mask) y = Cast<to=1>(h)"
    model = text_model(body, {}, x="int64[batch, seq] ids, int64[batch, seq] mask", y="float[batch, seq] y")
    sets = random_inputs(model)
    assert [arrays["ids"].shape for arrays in sets] == [(2, 32), (1, 32), (3, 32)]
    assert all(arrays["mask"].shape == arrays["ids"].shape for arrays in sets)
    assert verify(model, model).ok


def test_batch_that_is_not_the_first_axis_everywhere():
    model = text_model("t = Transpose(u) y = Add(x, t)", {}, x="float[B, 4] x, float[4, B] u", y="float[B, 4] y")
    assert [arrays["u"].shape for arrays in random_inputs(model)] == [(4, 2), (4, 1), (4, 3)]
    assert verify(model, model).ok


@pytest.mark.parametrize("side", [224, 32, 28, 299])
def test_images_get_the_size_that_the_model_takes(side):
    model = classifier(side)
    assert random_inputs(model, seeds=(0,), batch=1)[0]["x"].shape == (1, 1, side, side)


def test_a_model_that_takes_no_size_is_refused_in_one_sentence():
    with pytest.raises(ModelError, match="onnxruntime must be able to run the model, got") as caught:
        verify(classifier(77), classifier(77))
    assert len(str(caught.value).splitlines()) == 1
    inputs = [{"x": np.ones((2, 1, 77, 77), np.float32)}]
    assert verify(classifier(77), classifier(77), inputs).ok


def test_sets_that_the_model_does_not_take_are_left_out():
    """It is written for a batch of 1, whatever it declares."""
    model = text_model("y = Reshape(x, k)", {"k": np.array([1, 3])}, x="float[N, 3] x", y="float[a, b] y")
    assert verify(model, model).inputs == 4


def test_difficult_inputs():
    model = text_model("y = Add(x, x)", {}, x="float[N, 3] x, float16[N] h, int64[2] i, bool[2] b", y="float[N, 3] y")
    *ordinary, zeros, ones, large = proof_inputs(model)
    assert len(ordinary) == 3
    for name, dtype in (("x", np.float32), ("h", np.float16), ("i", np.int64), ("b", np.bool_)):
        assert {arrays[name].dtype for arrays in (*ordinary, zeros, ones, large)} == {np.dtype(dtype)}
        assert not zeros[name].any()
        assert (ones[name] == 1).all()
    assert np.abs(large["x"]).max() > 100
    assert 1 < np.abs(large["h"]).max() < 100
    assert set(np.unique(large["i"])) <= {0, 1}


def test_strings_are_refused():
    model = text_model("y = Identity(x)", {}, x="string[N] x", y="string[N] y")
    with pytest.raises(ModelError, match="input x must be an array of numbers, got"):
        verify(model, model)


def test_sequences_are_refused():
    model = identity("N, 3")
    kind = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    model.graph.input[0].CopyFrom(kind)
    with pytest.raises(ModelError, match="input x must"):
        model_inputs(model)


# From files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counting(shape, dtype=np.float64):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_npz_is_cut_into_batches(folder):
    x = counting((20, 3))
    np.savez("data.npz", x=x)
    sets = load_inputs("data.npz", identity("N, 3"))
    assert [len(arrays["x"]) for arrays in sets] == [8, 8, 4]
    assert sets[0]["x"].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([arrays["x"] for arrays in sets]), x)
    assert [len(arrays["x"]) for arrays in load_inputs("data.npz", identity("5, 3"))] == [5, 5, 5, 5]
    assert [len(arrays["x"]) for arrays in load_inputs("data.npz", identity("N, 3"), limit=9)] == [8, 1]
    assert [len(arrays["x"]) for arrays in load_inputs("data.npz", identity("5, 3"), limit=1)] == [5]


def test_npy_and_one_sample(folder):
    np.save("data.npy", counting((3,)))
    [arrays] = load_inputs("data.npy", identity("N, 3"))
    np.testing.assert_array_equal(arrays["x"], [[0, 1, 2]])


@pytest.mark.parametrize("declared", ["3", "1, 3", "K"])
def test_what_holds_no_samples_comes_whole(folder, declared):
    model = text_model("y = Add(x, u)", {}, x=f"float[N, 3] x, float[{declared}] u", y="float[N, 3] y")
    np.savez("data.npz", x=counting((20, 3)), u=counting((3,)))
    sets = load_inputs("data.npz", model)
    assert [len(arrays["x"]) for arrays in sets] == [8, 8, 4]
    assert all((arrays["u"].reshape(-1) == [0, 1, 2]).all() for arrays in sets)
    assert verify(model, model, sets).ok


def test_a_batch_that_is_another_axis_elsewhere_is_one_set(folder):
    model = text_model("t = Transpose(u) y = Add(x, t)", {}, x="float[B, 4] x, float[4, B] u", y="float[B, 4] y")
    np.savez("data.npz", x=counting((20, 4)), u=counting((4, 20)))
    [arrays] = load_inputs("data.npz", model)
    assert (arrays["x"].shape, arrays["u"].shape) == ((20, 4), (4, 20))


def test_other_names_are_ignored_and_one_array_needs_none(folder):
    np.savez("data.npz", x=counting((3, 3)), labels=np.array(["a", "b", "c"]), other=np.array([None]))
    assert list(load_inputs("data.npz", identity("N, 3"))[0]) == ["x"]
    np.savez("data.npz", counting((3, 3)))
    assert list(load_inputs("data.npz", identity("N, 3"))[0]) == ["x"]


def test_inputs_with_a_default_are_taken_if_they_are_there(folder):
    model = text_model("y = Mul(x, k)", {"k": np.ones(1, np.float32)}, x="float[N, 3] x", y="float[N, 3] y")
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [1]))
    np.savez("data.npz", x=counting((9, 3)))
    assert [list(arrays) for arrays in load_inputs("data.npz", model)] == [["x"]] * 2
    np.savez("data.npz", x=counting((9, 3)), k=np.array([2]))
    sets = load_inputs("data.npz", model)
    assert [arrays["k"].tolist() for arrays in sets] == [[2], [2]]
    assert verify(model, model, sets).ok


def test_samples_that_fill_no_fixed_batch_are_left_out_and_counted(folder):
    np.save("data.npy", counting((13, 3)))
    samples = read_samples("data.npy", identity("5, 3"))
    assert [len(arrays["x"]) for arrays in samples.batches()] == [5, 5]
    assert samples.account == {"data": "data.npy", "samples": 10, "left_out": 3}
    samples = read_samples("data.npy", identity("N, 3"), limit=4, batch_size=3)
    assert [len(arrays["x"]) for arrays in samples.batches()] == [3, 1]
    assert samples.account == {"data": "data.npy", "samples": 4, "left_out": 9}


def test_what_the_model_does_not_declare_is_as_in_the_file(folder):
    model = identity("N, 3")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    np.save("data.npy", counting((3, 2, 2), np.float32))
    [arrays] = load_inputs("data.npy", model)
    assert arrays["x"].shape == (3, 2, 2)


def test_images_are_read_batch_by_batch(folder):
    images = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir()
    for index in range(5):
        images.fromarray(np.full((4, 4), index, np.uint8)).save(folder / "images" / f"{index}.png")
    (folder / "images" / "4.png").write_bytes(b"no image")
    batches = read_samples("images", identity("2, 1, 4, 4"), batch_size=64).batches()
    assert [next(batches)["x"].shape for _ in range(2)] == [(2, 1, 4, 4)] * 2
    with pytest.raises(StopIteration):  # the fifth fills no batch, and is not even opened
        next(batches)


def test_integers_that_fit(folder):
    np.savez("data.npz", x=np.array([[0, 1], [1, 0]], np.int32))
    [arrays] = load_inputs("data.npz", identity("N, 2", "int64"))
    assert arrays["x"].dtype == np.int64
    [arrays] = load_inputs("data.npz", identity("N, 2", "bool"))
    assert arrays["x"].dtype == np.bool_


@pytest.mark.parametrize(
    ("declared", "shape"),
    [("N, 3, H, W_", (3, 224, 224)), ("N, 1, 8, 6", (1, 8, 6)), ("N, 8, 6, 3", (8, 6, 3)), ("1, 3, 8, 6", (3, 8, 6))],
)
def test_images(folder, declared, shape):
    images = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir()
    for index, name in enumerate(("b.png", "a.jpg", "c.bmp")):
        images.fromarray(np.full((10, 12, 3), 100 * index, np.uint8)).save(folder / "images" / name)
    (folder / "images" / "notes.txt").write_text("no image")
    sets = load_inputs("images", identity(declared))
    x = np.concatenate([arrays["x"] for arrays in sets])
    assert x.shape == (3, *shape)
    np.testing.assert_allclose(x[:, 0, 0, 0], [100 / 255, 0, 200 / 255], atol=0.02)
    whole = np.concatenate([arrays["x"] for arrays in load_inputs("images", identity(declared, "uint8"))])
    assert (whole.dtype, whole.max()) == (np.uint8, 200)


def archive(name, **arrays):
    return lambda: np.savez(name, **arrays)


def written(name, content):
    return lambda: Path(name).write_bytes(content)


def images_of(content):
    def make():
        Path("images").mkdir()
        if content is not None:
            written("images/a.png", content)()

    return make


ONE = np.ones((2, 3), np.float32)
BAD = {
    "missing": (lambda: None, "no.npz", "N, 3", "no such file"),
    "of another kind": (written("data.csv", b"1,2"), "data.csv", "N, 3", "must be an .npz, an .npy or a folder"),
    "empty .npz": (written("a.npz", b""), "a.npz", "N, 3", "that NumPy can read"),
    "empty .npy": (written("a.npy", b""), "a.npy", "N, 3", "that NumPy can read"),
    "text as .npz": (written("a.npz", b"hello"), "a.npz", "N, 3", "that NumPy can read"),
    "truncated .npz": (written("a.npz", b"PK\x03\x04" + bytes(50)), "a.npz", "N, 3", "that NumPy can read"),
    "objects": (lambda: np.save("a.npy", np.array([None]), allow_pickle=True), "a.npy", "N, 3", "that NumPy can read"),
    "a size that lies": (
        written(
            "a.npy",
            b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}  \n",
        ),
        "a.npy",
        "N, 3",
        "that NumPy can read",
    ),
    "an archive called .npy": (lambda: written("a.npy", zipped())(), "a.npy", "N, 3", "call it .npz"),
    "an array called .npz": (
        lambda: (np.save("a.npy", ONE), Path("a.npy").rename("a.npz")),
        "a.npz",
        "N, 3",
        "call it .npy",
    ),
    "other names": (archive("a.npz", u=ONE, w=ONE), "a.npz", "N, 3", r"must hold the arrays \['x'\]"),
    "another rank": (archive("a.npz", x=ONE[None, None]), "a.npz", "N, 3", "must have the shape"),
    "another shape": (archive("a.npz", x=ONE[:, :2]), "a.npz", "N, 3", r"must have the shape \(N, 3\), got \(2, 2\)"),
    "too few for a batch": (
        archive("a.npz", x=ONE),
        "a.npz",
        "5, 3",
        "at least one batch of 5 samples",
    ),
    "no samples": (archive("a.npz", x=ONE[:0]), "a.npz", "N, 3", "at least one"),
    "text": (archive("a.npz", x=np.array([["a", "b", "c"]])), "a.npz", "N, 3", "must be float32, got <U1"),
    "NaN": (archive("a.npz", x=ONE * np.nan), "a.npz", "N, 3", "must be numbers, got NaN"),
    "complex": (archive("a.npz", x=ONE * 1j), "a.npz", "N, 3", "must be float32, got complex"),
    "no image": (images_of(None), "images", "N, 3, 8, 8", "must hold images"),
    "broken image": (images_of(b"\x89PNG but no more"), "images", "N, 3, 8, 8", "a.png must be an image"),
    "images for a matrix": (images_of(b""), "images", "N, 3", "4 axes with 1 or 3 channels"),
}


def zipped():
    file = io.BytesIO()
    np.savez(file, x=ONE)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_data(folder, case):
    make, path, declared, sentence = BAD[case]
    make()
    with pytest.raises(ModelError, match=sentence) as caught:
        load_inputs(path, identity(declared))
    assert "must" in str(caught.value)
    assert "got" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "array"), [("int64", [[0.5, 1]]), ("uint8", [[0, 300]]), ("int64", [[1e30, 0]]), ("bool", [[0, 2]])]
)
def test_integers_that_do_not_fit(folder, kind, array):
    np.savez("a.npz", x=np.array(array))
    with pytest.raises(ModelError, match=r"x in a\.npz must (be|fit)"):
        load_inputs("a.npz", identity("N, 2", kind))


def test_several_inputs_need_names(folder):
    model = text_model("y = Add(x, u)", {}, x="float[N, 3] x, float[N, 3] u", y="float[N, 3] y")
    np.save("a.npy", ONE)
    with pytest.raises(ModelError, match=r"give an \.npz"):
        load_inputs("a.npy", model)
    np.savez("a.npz", x=ONE, u=ONE[:1])
    with pytest.raises(ModelError, match="one number of samples"):
        load_inputs("a.npz", model)


def test_images_without_pillow(folder, monkeypatch):
    images_of(b"")()
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pillow must be installed"):
        load_inputs("images", identity("N, 3, 8, 8"))


def test_data_that_is_used_by_the_proof_is_a_copy_of_the_file(folder):
    np.savez("data.npz", x=counting((2, 3)))
    model = identity("N, 3")
    onnx.save(model, "model.onnx")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert verify("model.onnx", "model.onnx", load_inputs("data.npz", "model.onnx")).ok
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
