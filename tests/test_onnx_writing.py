"""ONNX files written: what was read comes out again, whole or not at all, and large weights one by one."""

import gc
import os
import resource
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import assert_one_sentence, external, good, large, snapshot
from onnx_models import initializers, random_feeds, run_onnxruntime, text_model

import export.files.weights
from export import verify
from export.files import as_model, read_model, save, to_proto, writing
from fastbn.errors import ModelError


def unknown_operator():
    model = good()
    model.graph.node[0].op_type = "Nonsense"
    return model


def sizes_that_do_not_fit():
    model = good()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "s"))
    return model


# The same model


def canonical(message):
    """A copy without what protobuf need not keep, that a field is set to its default, and with maps in order."""
    copy = type(message)()
    copy.CopyFrom(message)
    _canonical(copy)
    return copy


def _canonical(message):
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "value_info", "quantization_annotation"):
            entries = sorted(value, key=lambda entry: entry.SerializeToString(deterministic=True))
            message.ClearField(field.name)
            getattr(message, field.name).extend(entries)
        if field.message_type is None:
            if not field.is_repeated and value == field.default_value:
                message.ClearField(field.name)
        elif field.name != "dim":
            value = getattr(message, field.name)
            for inner in value if field.is_repeated else [value]:
                _canonical(inner)


FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data"
SHIPPED = sorted(path for kind in ("light", "simple", "pytorch-converted") for path in FOLDER.glob(f"{kind}/**/*.onnx"))


def test_models_that_come_with_onnx_are_the_same_when_written():
    assert len(SHIPPED) > 80
    for path in SHIPPED:
        model = onnx.load(path)
        assert canonical(to_proto(read_model(path))) == canonical(model), path


EVERYTHING = """
<ir_version: 10, opset_import: ["": 21, "own": 1, "com.acme": 3], producer_name: "someone", producer_version: "1.2",
 domain: "org.example", model_version: 7, doc_string: "a model", metadata_props: ["b": "2", "a": "1"]>
main (float[N, 2, 6, 6] x, bool k) => (float[N, 2, 6, 6] y, float[M, 2, 6, 6] z)
<float[N, 2, 6, 6] c, float[2] w = {1, 2}, float[1] unused = {3}>
{
    c = own.F <slope = 0.5> (x)
    z = com.acme.Bar <names = ["a", "b"], sizes = [1, 2], tensor = float[2] {5, 6}> (c)
    y = If (k) <then_branch = t () => (u) <float[1] inner = {4}> { u = Add(c, inner) },
                else_branch = e () => (v) { v = Identity(x) }>
}
<opset_import: ["": 21], domain: "own", doc_string: "leaks"> F <slope: float = 0.1> (a) => (b) {
    b = LeakyRelu <alpha: float = @slope> (a)
}
"""


def everything():
    """A model with something in every field that there is a use for."""
    model = onnx.parser.parse_model(EVERYTHING)
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="graph", value="yes")
    node = graph.node[0]
    node.name, node.doc_string = "first", "a node"
    node.metadata_props.add(key="namespace", value="layer.0")
    graph.initializer[0].doc_string = "weights"
    graph.initializer[0].metadata_props.add(key="weights", value="yes")
    graph.input[0].doc_string = "an image"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.value_info[0].metadata_props.add(key="value", value="yes")
    graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    annotation = graph.quantization_annotation.add(tensor_name="c")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    training = model.training_info.add()
    training.algorithm.CopyFrom(helper.make_graph([helper.make_node("Neg", ["w"], ["n"])], "step", [], []))
    training.update_binding.add(key="w", value="n")
    return model


@pytest.mark.parametrize("split", [False, True])
def test_everything_in_a_model_is_kept(tmp_path, split):
    """Neither a field is lost nor one made up, in one file or in two."""
    (tmp_path / "from").mkdir()
    path, written = tmp_path / "from" / "model.onnx", tmp_path / "written.onnx"
    model = everything()
    onnx.save(model, path, save_as_external_data=split, size_threshold=0, convert_attribute=True)
    with writing(read_model(path), written):
        pass
    assert canonical(onnx.load(written)) == canonical(everything())
    assert canonical(to_proto(as_model(everything()))) == canonical(everything())


# One file


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


def inside(folder):
    """A model with 4 kB in a subgraph, a Constant node, a function and an initialiser each, all in another file."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(1024).astype(np.float32) for _ in range(4)]
    then, constant, own, plain = (
        numpy_helper.from_array(array, name) for name, array in zip("tkfw", arrays, strict=True)
    )
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 21, "own": 1]>
        main (float[1024] x, bool p) => (float[1024] y)
        {
            h = own.F(x)
            i = Add(h, w)
            y = If (p) <then_branch = a () => (u) { u = Add(i, t) }, else_branch = b () => (v) { v = Identity(i) }>
        }
        <opset_import: ["": 21], domain: "own"> F (a) => (b) { b = Identity(a) }
    """)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=constant))
    model.graph.node[2].input[0] = "k"
    model.graph.initializer.append(plain)
    model.graph.node[3].attribute[0].g.initializer.append(then)
    function = model.functions[0]
    function.node.insert(0, helper.make_node("Constant", [], ["f"], value=own))
    function.node[1].CopyFrom(helper.make_node("Add", ["a", "f"], ["b"]))
    function.attribute_proto.append(helper.make_attribute("default", numpy_helper.from_array(arrays[0], "d")))
    data = folder / "inside.data"
    holders = [
        function.attribute_proto[0].t,
        model.graph.initializer[0],
        model.graph.node[0].attribute[0].t,
        model.graph.node[3].attribute[0].g.initializer[0],
        function.node[0].attribute[0].t,
    ]
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    with open(data, "wb") as file:
        for holder in holders:
            onnx.external_data_helper.set_external_data(holder, data.name, offset=file.tell(), length=4096)
            file.write(holder.raw_data)
            holder.ClearField("raw_data")
    (folder / "inside.onnx").write_bytes(model.SerializeToString())
    return whole, folder / "inside.onnx"


def test_weights_of_subgraphs_functions_and_constants(tmp_path, monkeypatch):
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    whole, path = inside(tmp_path / "from")
    monkeypatch.chdir(tmp_path)
    assert canonical(to_proto(read_model(path.relative_to(tmp_path)))) == canonical(whole)
    written = tmp_path / "to" / "out.onnx"
    with writing(read_model(path), written):
        pass
    path.unlink()
    (tmp_path / "from" / "inside.data").unlink()
    assert written.stat().st_size < 4096 < 4 * 4096 <= (tmp_path / "to" / "out.onnx.data").stat().st_size
    assert canonical(to_proto(read_model(written))) == canonical(whole)


# Weights beside the model


def lazy(make, shape=(1024,)):
    return ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape))


def test_weights_are_computed_one_by_one_and_once(tmp_path):
    """As many as a model has, one is in memory."""
    _, path = inside(tmp_path)
    model = read_model(path)
    alive: list[weakref.ref] = []
    made = []

    def make(name):
        gc.collect()
        assert all(array() is None for array in alive)
        array = np.full(1024, len(made), np.float32)
        alive.append(weakref.ref(array))
        made.append(name)
        return ir.Tensor(array)

    for number in range(5):
        name = f"new{number}"
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, shape=ir.Shape([1024]), type=kind, const_value=lazy(lambda name=name: make(name)))
        model.graph.initializers[name] = value
    save(model, tmp_path / "out.onnx")
    assert made == [f"new{number}" for number in range(5)]
    stored = initializers(onnx.load(tmp_path / "out.onnx"))
    assert [stored[name][0] for name in made] == [0, 1, 2, 3, 4]


def test_what_is_small_stays_inside_and_offsets_can_be_mapped(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"t{size}": rng.standard_normal(size).astype(np.float32) for size in (1, 256, 257, 300, 400_000, 16_384)}
    onnx.save(
        text_model("y = Identity(x)", arrays), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0
    )
    with writing(read_model(tmp_path / "model.onnx"), tmp_path / "out.onnx"):
        pass
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    offsets = {
        tensor.name: int(entry.value) for tensor in stored for entry in tensor.external_data if entry.key == "offset"
    }
    assert offsets.keys() == {"t257", "t300", "t400000", "t16384"}
    assert all(offset % 64 == 0 for offset in offsets.values())
    assert offsets["t400000"] % 4096 == offsets["t16384"] % 4096 == 0
    for name, array in initializers(onnx.load(tmp_path / "out.onnx")).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_model_stays_as_it_is_when_it_is_written(tmp_path):
    """Its weights are still those of the source, not of what was written and may be gone."""
    (tmp_path / "to").mkdir()
    whole, path = inside(tmp_path)
    model = read_model(path)
    for _ in range(2):
        with writing(model, tmp_path / "to" / "out.onnx"):
            pass
        for file in (tmp_path / "to").iterdir():
            file.unlink()
    assert canonical(to_proto(model)) == canonical(whole)


def test_weights_that_are_shared_are_written_once(tmp_path):
    _, path = inside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer.append(proto.graph.initializer[0])
    proto.graph.initializer[1].name = "tied"
    path.write_bytes(proto.SerializeToString())
    with writing(read_model(path), tmp_path / "out.onnx"):
        pass
    assert (tmp_path / "out.onnx.data").stat().st_size == (tmp_path / "inside.data").stat().st_size
    stored = initializers(onnx.load(tmp_path / "out.onnx"))
    np.testing.assert_array_equal(stored["tied"], stored["w"])


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("shape", [(1023,), (1025,)])
def test_weights_of_another_size_than_they_said(tmp_path, shape):
    model = as_model(large())
    model.graph.initializers["s"].const_value = lazy(lambda: ir.Tensor(np.zeros(shape, np.float32)))
    with (
        pytest.raises(ModelError, match=r"weight s must have 4,096 bytes, got 4,(092|100)") as caught,
        writing(model, tmp_path / "out.onnx"),
    ):
        pytest.fail("handed out")
    assert_one_sentence(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_limit")
def test_weights_that_cannot_be_computed_keep_their_words(tmp_path):
    def refuse():
        raise ModelError("fold: weights of conv1 must be finite, got inf")

    model = as_model(large())
    model.graph.initializers["s"].const_value = lazy(refuse)
    with pytest.raises(ModelError, match=r"^fold: weights of conv1"), writing(model, tmp_path / "out.onnx"):
        pytest.fail("handed out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", [False, True])
def test_full_disk(tmp_path, split):
    """A limit of the size of files stands in for the disk."""
    _, path = inside(tmp_path)
    model = read_model(path) if split else as_model(large())
    before = snapshot(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with (
            pytest.raises(ModelError, match=r"out.onnx must be writable to its end, got File too large") as caught,
            writing(model, tmp_path / "out.onnx"),
        ):
            pytest.fail("handed out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_sentence(caught)
    assert snapshot(tmp_path) == before


# Models beyond protobuf's 2 GB, tried with a limit of a few bytes


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(export.files.weights, "INLINE_LIMIT", 10)


@pytest.mark.usefixtures("small_limit")
def test_large_weights_go_beside_the_model(tmp_path):
    path = tmp_path / "model.onnx"
    with writing(as_model(large()), path) as temporary:
        assert verify(large(), temporary).ok
    assert snapshot(tmp_path).keys() == {"model.onnx", "model.onnx.data"}
    assert path.stat().st_size < initializers(large())["W"].nbytes <= (tmp_path / "model.onnx.data").stat().st_size
    assert verify(large(), path).ok
