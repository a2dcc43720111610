"""``python -m bench.large_models``: large ONNX models read, changed and written, in seconds and peak memory.

blocks: 5,000 times Conv, batch norm and ReLU, 15,000 nodes in one file. weights: 2.4 GB of convolutions in another
file. tensors: 20,000 small ones in another file. The changes: none; every weight computed anew when it is written
("scaled"); batch norms folded. Each measurement is a process of its own. Memory is what the work makes a process hold
(anonymous), and all that it has resident: the libraries and pages of mapped files as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.files import read_model, save, writing
from export.fold import fold_graph

FLOAT = ir.TensorType(ir.DataType.FLOAT)


class Network:
    """A chain of nodes with weights that are made when they are written."""

    def __init__(self, channels: int, size: int) -> None:
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.shape = ir.Shape(["N", channels, size, size])
        self.input = self.last = ir.Value(name="x", shape=self.shape, type=FLOAT)

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> ir.Value:
        seed = len(self.weights)

        def make() -> ir.Tensor:
            return ir.Tensor(np.random.default_rng(seed).random(shape, np.float32) * np.float32(high - low) + low)

        tensor = ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape))
        self.weights.append(ir.Value(name=f"w{seed}", shape=ir.Shape(shape), type=FLOAT, const_value=tensor))
        return self.weights[-1]

    def add(self, operator: str, *constants: ir.Value, **attributes: list[int]) -> None:
        kept = [ir.AttrInt64s(name, value) for name, value in attributes.items()]
        node = ir.Node("", operator, [self.last, *constants], kept, name=f"{operator}{len(self.nodes)}")
        node.outputs[0].name = f"h{len(self.nodes)}"
        self.nodes.append(node)
        self.last = node.outputs[0]

    def conv_bn(self, channels: int) -> None:
        scale = (6 / (9 * channels)) ** 0.5
        self.add("Conv", self.weight(channels, channels, 3, 3, low=-scale, high=scale), pads=[1, 1, 1, 1])
        positive = self.weight(channels, low=0.5)
        self.add("BatchNormalization", positive, *(self.weight(channels) for _ in "bm"), self.weight(channels, low=0.5))

    def model(self) -> ir.Model:
        self.last.type, self.last.shape, self.last.name = FLOAT, self.shape, "y"
        outputs, imports = [self.last], {"": 17}
        graph = ir.Graph(
            [self.input], outputs, nodes=self.nodes, initializers=self.weights, opset_imports=imports, name="large"
        )
        return ir.Model(graph, ir_version=8)


def blocks() -> ir.Model:
    network = Network(8, 8)
    for _ in range(5000):
        network.conv_bn(8)
        network.add("Relu")
    return network.model()


def weights() -> ir.Model:
    network = Network(1328, 4)
    for _ in range(38):
        network.conv_bn(1328)
    return network.model()


def tensors() -> ir.Model:
    network = Network(512, 1)
    for _ in range(20_000):
        network.add("Add", network.weight(1, 512, 1, 1))
    return network.model()


def scaled(model: ir.Model) -> None:
    """Every weight times two, computed when it is asked for."""
    for value in model.graph.initializers.values():
        source = value.const_value
        value.const_value = ir.LazyTensor(
            lambda source=source: ir.Tensor(source.numpy() * np.float32(2)), source.dtype, source.shape
        )


MODELS = {"blocks": blocks, "weights": weights, "tensors": tensors}
CHANGES = {"none": lambda model: None, "scaled": scaled, "folded": fold_graph}


def status(process: int, field: str) -> int:
    """Bytes of a line of a process's status; 0 when it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def measure(path: Path, change: str) -> dict[str, float]:
    """Seconds of each part, memory held before and most memory resident; for a process of its own."""
    start = status(os.getpid(), "RssAnon")
    spent = {}
    begun = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begun
        spent[name] = time.perf_counter() - begun
        begun = time.perf_counter()

    model = read_model(path)
    lap("read")
    CHANGES[change](model)
    lap("change")
    with writing(model, path.with_name("out.onnx")) as temporary:
        lap("write")
        onnx.checker.check_model(str(temporary), full_check=True)
        lap("check")
    return {**spent, "start": start, "resident": status(os.getpid(), "VmHWM")}


def watch(path: Path, change: str) -> dict[str, float]:
    """``measure``, and the most that was held: looked at from outside every 10 ms."""
    command = [sys.executable, "-m", "bench.large_models", "--measure", str(path), change]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    held = 0
    while process.poll() is None:
        held = max(held, status(process.pid, "RssAnon"))
        time.sleep(0.01)
    found: dict[str, float] = json.loads(process.communicate()[0])
    return {**found, "held": held - found["start"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--changes", nargs="*", default=list(CHANGES), help=f"of {', '.join(CHANGES)}")
    parser.add_argument("--folder", help="where the models are written, and removed: 5 GB (the system's)")
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "CHANGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    print("model     change     read s   change s   write s   (its check)   held MB   resident MB")
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder, "model.onnx")
            save(MODELS[name](), path)
            if name == "tensors":
                onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0)
            for change in options.changes:
                found = watch(path, change)
                seconds = "".join(f"{found[part]:10.2f}" for part in ("read", "change", "write", "check"))
                print(
                    f"{name:9} {change:8}{seconds} {found['held'] / 1e6:12.0f} {found['resident'] / 1e6:12.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
