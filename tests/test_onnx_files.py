"""ONNX files read: whatever is wrong with one is a sentence; weights in other files are checked, and read when used."""

import gzip
import os
import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_lines import assert_refused
from onnx import TensorProto, helper, numpy_helper
from onnx_files import assert_one_sentence, external, good
from onnx_models import run_onnxruntime, text_model

from export import fold_onnx
from export.cli import main
from export.files import as_model, read_model, to_proto
from fastbn.errors import DtypeError, ModelError

# What is no model


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


def test_every_cut_is_refused_or_leaves_the_graph_whole(tmp_path):
    """What comes after the graph and its operator sets can be missing without a trace; nothing else can."""
    model = good()
    helper.set_model_props(model, {"author": "nobody", "purpose": "to be cut"})
    whole = model.SerializeToString()
    path = tmp_path / "model.onnx"
    read = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            cut = to_proto(read_model(path))
        except ModelError:
            continue
        read += 1
        assert cut.graph.node == model.graph.node
        assert cut.graph.initializer == model.graph.initializer
        assert cut.opset_import == model.opset_import
    assert read == 2  # without both properties, and without the last


NAMED = {
    "a gzip file; unpack it first": gzip.compress(good().SerializeToString()),
    "a zip file": b"PK\x03\x04" + bytes(200),
    "a Git LFS pointer; fetch": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 1234\n",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "an empty file": b"",
    "text": b"<!DOCTYPE html>\n<html></html>\n",
    "what protobuf cannot parse, perhaps cut off": good().SerializeToString()[:100],
}


@pytest.mark.parametrize("what", NAMED)
def test_the_sentence_names_other_formats(tmp_path, what):
    path = tmp_path / "model.onnx"
    path.write_bytes(NAMED[what])
    with pytest.raises(ModelError, match=f"must be an ONNX model, got {what}"):
        read_model(path)


def test_more_than_protobuf_can_hold_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read 2 GB"))
    with pytest.raises(ModelError, match=r"got 2,147,483,648 bytes, more than .* keep weights in another file"):
        read_model(path)


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    onnx.save(good(), path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match=r"must be an ONNX model, got Permission denied: .*model.onnx$"):
        read_model(path)


@pytest.mark.parametrize("thing", [None, 3, b"model.onnx", ["model.onnx"]])
def test_what_is_neither_path_nor_model(thing):
    with pytest.raises(DtypeError, match=r"must be a path or an onnx.ModelProto, got "):
        as_model(thing)


# Models that are not right


def changed(change, model=None):
    model = model or good()
    change(model)
    return model


def tensor(**fields):
    """A model whose first weights are this TensorProto."""
    model = good()
    del model.graph.initializer[0]
    model.graph.initializer.add(**{"name": "W", "data_type": TensorProto.FLOAT, "dims": [3, 2, 3, 3]} | fields)
    return model


def constant(**fields):
    """... and a Constant node holds it."""
    model = tensor(**fields)
    node = helper.make_node("Constant", [], ["W"], value=model.graph.initializer.pop())
    model.graph.node.insert(0, node)
    return model


def opset(*imports):
    model = good()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports)
    return model


def twice(field):
    model = good()
    getattr(model.graph, field).append(getattr(model.graph, field)[0])
    return model


def sparse():
    values = helper.make_tensor("W", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [3])
    return helper.make_sparse_tensor(values, indices, [54])


def function_twice():
    model = good()
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    model.functions.extend([function, function])
    return model


BAD_MODELS = {
    "no operator set": (lambda: opset(), "names no operator set"),
    "operator set of the future": (lambda: opset(("", 999)), "opset 999, where onnx .* knows 1 to "),
    "operator set 0": (lambda: opset(("", 0)), "opset 0, where"),
    "negative operator set": (lambda: opset(("ai.onnx", -3)), "opset -3, where"),
    "two operator sets": (lambda: opset(("", 17), ("", 18)), "two versions of the operator set ''"),
    "IR version 0": (lambda: changed(lambda model: setattr(model, "ir_version", 0)), "IR version 0, where"),
    "no IR version": (lambda: changed(lambda model: model.ClearField("ir_version")), "IR version 0, where"),
    "IR version of the future": (lambda: changed(lambda model: setattr(model, "ir_version", 999)), "IR version 999"),
    "cycle": (lambda: text_model("a = Add(x, b) b = Relu(a) y = Identity(b)", {}), "a cycle"),
    "node that reads itself": (lambda: text_model("y = Add(x, y)", {}), "a cycle"),
    "value that nothing makes": (lambda: text_model("y = Relu(nowhere)", {}), "Relu y that reads 'nowhere', which"),
    "output that nothing makes": (
        lambda: changed(lambda model: setattr(model.graph.output[0], "name", "nowhere")),
        "output 'nowhere' of graph main, which no node makes",
    ),
    "value of a graph inside": (
        lambda: text_model("k = Constant<value_int=1>() y = If(k) <then_branch = t () => (u) { u = Relu(x) }, "
                           "else_branch = e () => (w) { w = Relu(u) }>", {}),
        "reads 'u', which nothing makes",
    ),
    "two nodes of one output": (lambda: text_model("y = Relu(x) y = Abs(x)", {}), "two values .* called 'y'"),
    "node that makes an input": (lambda: text_model("x = Relu(x) y = Abs(x)", {}), "two values .* called 'x'"),
    "input twice": (lambda: twice("input"), "two inputs .* called 'x'"),
    "initializer twice": (lambda: twice("initializer"), "two initializers .* called 'W'"),
    "initializer without a name": (lambda: tensor(name=""), "an initializer without a name"),
    "function twice": (function_twice, "two functions called"),
    "attribute without a type": (
        lambda: changed(lambda model: model.graph.node[0].attribute.add(name="group", i=1)),
        "attribute 'group' that has no type",
    ),
    "sparse initializer": (
        lambda: changed(lambda model: model.graph.sparse_initializer.append(sparse())), "a sparse initializer"
    ),
    "sparse attribute": (
        lambda: changed(lambda model: model.graph.node[0].attribute.append(helper.make_attribute("v", sparse()))),
        "a sparse tensor",
    ),
}  # fmt: skip

BAD_TENSORS = {
    "too few bytes": ({"raw_data": bytes(212)}, r"'W' of the shape \(3, 2, 3, 3\), 216 bytes, that holds 212"),
    "too many bytes": ({"raw_data": bytes(220)}, "216 bytes, that holds 220"),
    "no bytes": ({}, "54 entries, that holds 0"),
    "too few numbers": ({"float_data": [1.0] * 53}, "54 entries, that holds 53"),
    "numbers of another type": ({"int32_data": [1] * 54}, "54 entries, that holds 0"),
    "too few complex numbers": ({"data_type": TensorProto.COMPLEX64, "float_data": [0] * 54}, "108 entries"),
    "too few of four bits": ({"data_type": TensorProto.INT4, "int32_data": [0] * 26}, "27 entries, that holds 26"),
    "too few strings": ({"data_type": TensorProto.STRING, "string_data": [b"a"]}, "54 strings, that holds 1"),
    "a negative size": ({"dims": [-1, -1], "raw_data": bytes(4)}, r"of the shape \(-1, -1\)"),
    "a trillion": ({"dims": [10**6, 10**6]}, "1,000,000,000,000 entries, that holds 0"),
    "more than 64 bits": ({"dims": [2**62] * 4, "raw_data": bytes(4)}, r"of the shape \(4611686018427387904, "),
    "a trillion strings": ({"dims": [10**12], "data_type": TensorProto.STRING}, "that holds 0"),
    "no type": ({"data_type": 0, "raw_data": bytes(216)}, "without a type"),
    "a type of the future": ({"data_type": 999, "raw_data": bytes(216)}, "999"),
    "segments": ({"segment": TensorProto.Segment(begin=0, end=1), "raw_data": bytes(216)}, "in segments"),
}
BAD_MODELS |= {
    f"{where.__name__} of {case}": (lambda where=where, fields=fields: where(**fields), sentence)
    for case, (fields, sentence) in BAD_TENSORS.items()
    for where in (tensor, constant)
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(tmp_path, monkeypatch, capsys, case):
    make, sentence = BAD_MODELS[case]
    with pytest.raises(ModelError, match=f"^read: the model must be valid ONNX, got .*{sentence}") as caught:
        as_model(make())
    assert_one_sentence(caught)
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(make().SerializeToString())
    line = assert_refused(main, ["model.onnx", "-o", "out.onnx"], capsys, tmp_path, "python -m export")
    assert "model.onnx must be an ONNX model, got " in line


IF = """y = If(k) <then_branch = t () => (u) { u = Relu(v) v = Neg(later) },
                   else_branch = e () => (w) { w = Abs(later) }>"""
INSIDE = IF.replace("u = Relu(v) v = Neg(later)", "v = Neg(later) u = Relu(v)")


@pytest.mark.parametrize("branch", [IF, INSIDE])
@pytest.mark.parametrize("order", ["{0} {1} {2}", "{1} {0} {2}", "{2} {0} {1}", "{1} {2} {0}"])
def test_nodes_in_any_order(branch, order):
    """onnxruntime runs such a graph as well; onnx's checker refuses it, so it is put in order."""
    body = order.format(branch, "k = Constant<value = bool {1}>()", "later = Neg(x)")
    model = text_model(body, {})
    ordered = to_proto(as_model(model))
    onnx.checker.check_model(ordered, full_check=True)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(run_onnxruntime(ordered, feeds)[0], np.maximum(feeds["x"], 0))


def test_operators_of_other_domains_are_kept():
    model = text_model("c = Conv(x, W) y = com.acme.Foo <depth = 3> (c)", {"W": np.ones((3, 2, 3, 3), np.float32)})
    model.opset_import.add(domain="com.acme", version=7)
    assert to_proto(as_model(model)) == model


# Weights in another file

DTYPES = ["float32", "float64", "float16", "int64", "int8", "bool", "complex64"]
DTYPES += [getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "int4", "uint4")]


@pytest.mark.parametrize("shape", [(5, 3), (), (0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_shape(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    wanted = [np.asarray(rng.integers(0, 7, shape)).astype(dtype) for _ in range(3)]
    tensors = [numpy_helper.from_array(array, f"t{index}") for index, array in enumerate(wanted)]
    graph = helper.make_graph([], "g", [], [], tensors)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, size_threshold=0, location="data")
    assert (tmp_path / "data").exists()
    for value, array in zip(read_model(path).graph.initializers.values(), wanted, strict=True):
        assert isinstance(value.const_value, ir.ExternalTensor)
        for got in (value.const_value.numpy(), np.asarray(value.const_value)):
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array)
        assert value.const_value.tobytes() == numpy_helper.from_array(array).raw_data
    del got
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_weights_are_mapped_only_while_they_are_used(tmp_path):
    """A map takes a file descriptor; a model may have more tensors than a process may have of those."""
    _, path = external(tmp_path)
    model = read_model(path)
    assert "model.data" not in Path("/proc/self/maps").read_text()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    array = tensors[0].numpy()
    assert Path("/proc/self/maps").read_text().count("model.data") == 1
    del array
    assert "model.data" not in Path("/proc/self/maps").read_text()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, limits[1]))
    try:
        assert all(np.isfinite(tensor.numpy()).all() for tensor in tensors * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def relocated(folder, **entries):
    """``external`` with other entries where its first weights are; None removes one."""
    _, path = external(folder)
    model = onnx.load(path, load_external_data=False)
    (first,) = (tensor for tensor in model.graph.initializer if tensor.name == "W")
    old = {entry.key: entry.value for entry in first.external_data} | entries
    del first.external_data[:]
    for key, value in old.items():
        if value is not None:
            first.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


PLACES = {
    "absolute": ("{}/outside.data", "weights outside its folder: '/"),
    "above": ("../outside.data", r"weights outside its folder: '\.\./outside.data'"),
    "above and back": ("../inside/model.data", "weights outside its folder"),
    "above in the middle": ("sub/../../outside.data", "weights outside its folder"),
    "backslashes": ("..\\outside.data", "weights outside its folder"),
    "backslash": ("sub\\model.data", "weights outside its folder"),
    "drive": ("C:model.data", "weights outside its folder"),
    "nothing": ("", "weights outside its folder"),
    "not given": (None, "weights outside its folder"),
    "link outside": ("link", "weights outside its folder: 'link' is a link to .*outside.data"),
    "file in a linked folder": ("linked/outside.data", "weights outside its folder: 'linked/outside.data' is a link"),
    "hard link": ("hard", "a file with 2 hard links"),
    "folder": ("sub", "'sub', which is no file"),
    "missing": ("nowhere.data", "no file 'nowhere.data' beside it"),
    "below a file": ("model.data/more", "no file 'model.data/more' beside it"),
    "link to nothing": ("dangling", "no file 'dangling' beside it"),
    "null character": ("model\0.data", "no file"),
}


@pytest.mark.parametrize("case", PLACES)
def test_place_of_weights_that_is_refused(tmp_path, case):
    """A model from elsewhere must not read any file there is."""
    location, sentence = PLACES[case]
    folder = tmp_path / "inside"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.data").write_bytes(bytes(10_000))
    (folder / "link").symlink_to("../outside.data")
    (folder / "linked").symlink_to("..")
    (folder / "dangling").symlink_to("nowhere.data")
    (folder / "second").write_bytes(bytes(10_000))
    os.link(folder / "second", folder / "hard")
    path = relocated(folder, location=location and location.format(tmp_path))
    with pytest.raises(ModelError, match=f"model.onnx must be an ONNX model, got .*{sentence}") as caught:
        fold_onnx(path)
    assert_one_sentence(caught)


def test_links_inside_the_folder(tmp_path):
    _, path = external(tmp_path)
    (tmp_path / "model.data").rename(tmp_path / "blob")
    (tmp_path / "model.data").symlink_to("blob")
    assert np.isfinite(read_model(path).graph.initializers["W"].const_value.numpy()).all()


RANGES = {
    "offset beyond the end": ({"offset": 10**6}, "bytes 1,000,000 to 1,000,216 of model.data, which has "),
    "offset near the end": ({"offset": 800}, "of model.data, which has"),
    "negative offset": ({"offset": -4}, "tensor 'W' with the offset '-4'"),
    "offset that is no number": ({"offset": "four"}, "tensor 'W' with the offset 'four'"),
    "negative length": ({"length": -4}, "tensor 'W' with the length '-4'"),
    "length too short": ({"length": 4}, "216 bytes, that holds 4"),
    "length too long": ({"length": 220}, "216 bytes, that holds 220"),
    "length beyond memory": ({"length": 10**18}, "216 bytes, that holds 1,000,000,000,000,000,000"),
    "length of 10,000 digits": ({"length": "9" * 10_000}, "tensor 'W' with the length '999"),
    "length of 0": ({"length": 0}, "216 bytes, that holds 0"),
}


@pytest.mark.parametrize("case", RANGES)
def test_range_of_weights_that_is_refused(tmp_path, case):
    entries, sentence = RANGES[case]
    with pytest.raises(ModelError, match=f"model.onnx must be an ONNX model, got .*{sentence}") as caught:
        read_model(relocated(tmp_path, **entries))
    assert_one_sentence(caught)


@pytest.mark.parametrize("entries", [{"length": None}, {"offset": None, "length": None}, {"checksum": "abc"}])
def test_range_that_is_not_said(tmp_path, entries):
    tensor = read_model(relocated(tmp_path, **entries)).graph.initializers["W"].const_value
    assert tensor.numpy().shape == (3, 2, 3, 3)


@pytest.mark.parametrize("fields", [{"dims": [10**6, 10**6]}, {"data_type": TensorProto.STRING}, {"data_type": 0}])
def test_shape_or_type_that_cannot_be(tmp_path, fields):
    _, path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for key, value in fields.items():
        model.graph.initializer[0].ClearField(key)
        model.graph.initializer[0].MergeFrom(TensorProto(**{key: value}))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"must be an ONNX model, got tensor 'W'") as caught:
        read_model(path)
    assert_one_sentence(caught)


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
