"""A model as a table: layers, output shapes, parameters, multiply-adds and sizes, as torchinfo counts them."""

import copy
from dataclasses import dataclass

import numpy as np

from fastbn._checks import check_int
from fastbn.errors import ShapeError
from fastbn.nn.conv import Conv
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module

BRANCH = ("", "├─", "└─")  # before the model itself, its children, and all below


@dataclass(frozen=True)
class Row:
    """One module: its class, place (depth, index within that depth), output shape and own parameters."""

    kind: str
    depth: int
    index: int
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Summary:
    """Figures of a model; ``str`` gives the table. Sizes are in bytes, multiply-adds for the whole batch.

    forward_backward_bytes: outputs of the layers that have parameters, counted twice, in float32.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    mult_adds: int
    input_bytes: int
    forward_backward_bytes: int
    parameter_bytes: int

    @property
    def total_bytes(self) -> int:
        """Input, outputs and parameters together."""
        return self.input_bytes + self.forward_backward_bytes + self.parameter_bytes

    def __str__(self) -> str:
        names = ["│    " * (row.depth - 1) + BRANCH[min(row.depth, 2)] + _label(row) for row in self.rows]
        shapes = [str(list(row.output_shape)) for row in self.rows]
        counts = [f"{row.parameters:,}" if row.parameters else "--" for row in self.rows]
        left = max(len(name) for name in [*names, "Layer (type:depth-idx)" + " " * 18]) + 1
        middle = max(len(shape) for shape in [*shapes, "Output Shape" + " " * 13]) + 1
        width = left + middle + 23
        rule = "=" * width
        lines = [rule, f"{'Layer (type:depth-idx)':<{left}}{'Output Shape':<{middle}}Param #", rule]
        lines += [f"{a:<{left}}{b:<{middle}}{c}" for a, b, c in zip(names, shapes, counts, strict=True)]
        unit, scale = ("G", 1e9) if self.mult_adds >= 1e9 else ("M", 1e6)
        lines += [
            rule,
            f"Total params: {self.parameters:,}",
            f"Trainable params: {self.trainable:,}",
            f"Non-trainable params: {self.parameters - self.trainable:,}",
            f"Total mult-adds ({unit}): {self.mult_adds / scale:.2f}",
            rule,
            f"Input size (MB): {self.input_bytes / 1e6:.2f}",
            f"Forward/backward pass size (MB): {self.forward_backward_bytes / 1e6:.2f}",
            f"Params size (MB): {self.parameter_bytes / 1e6:.2f}",
            f"Estimated Total Size (MB): {self.total_bytes / 1e6:.2f}",
            rule,
        ]
        return "\n".join(line.rstrip() for line in lines)


def summary(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Run zeros of ``input_shape``, the batch included, through a copy of ``model`` in eval mode and count.

    A convolution's multiply-adds are its parameters times its output pixels, any other layer's its parameters, both
    times the batch. Raises ShapeError, ArgumentError, and what the model raises for such an input.
    """
    if len(input_shape) < 2:
        raise ShapeError(f"summary: input_shape must include the batch, (N, C, ...), got {tuple(input_shape)}")
    for size in input_shape:
        check_int("summary", "input_shape", size, 1)
    probe = copy.deepcopy(model).eval()
    shapes: dict[int, tuple[int, ...]] = {}
    mult_adds = outputs = 0

    def record(module: Module, x: np.ndarray, y: np.ndarray) -> None:
        nonlocal mult_adds, outputs
        # A LayerBn does its children's work itself.
        for layer in (module, *module.children()) if isinstance(module, LayerBn) else (module,):
            shapes[id(layer)] = y.shape
            own = _own_parameters(layer) + _computed_parameters(layer)
            if own:
                mult_adds += own * y.shape[0] * (int(np.prod(y.shape[2:])) if isinstance(layer, Conv) else 1)
                outputs += y.size

    removers = [module.register_forward_hook(record) for module in probe.modules()]
    probe(np.zeros(input_shape, probe.dtype))
    for remove in removers:
        remove()
    rows: list[Row] = []
    _add_rows(probe, 0, {}, shapes, rows)
    parameters = list(probe.parameters())
    return Summary(
        rows=tuple(rows),
        parameters=sum(p.size for p in parameters),
        trainable=sum(p.size for p in parameters if p.requires_grad),
        mult_adds=mult_adds,
        input_bytes=int(np.prod(input_shape)) * 4,
        forward_backward_bytes=2 * 4 * outputs,
        parameter_bytes=sum(p.data.nbytes for p in parameters),
    )


def _add_rows(
    module: Module, depth: int, counters: dict[int, int], shapes: dict[int, tuple[int, ...]], rows: list[Row]
) -> None:
    counters[depth] = counters.get(depth, 0) + 1
    shape = shapes.get(id(module), ())
    rows.append(Row(type(module).__name__, depth, counters[depth], shape, _own_parameters(module)))
    for child in module.children():
        _add_rows(child, depth + 1, counters, shapes, rows)


def _own_parameters(module: Module) -> int:
    return sum(parameter.size for parameter in module._parameters.values() if parameter is not None)


def _computed_parameters(module: Module) -> int:
    """Of weights that are parametrised: what the layer itself multiplies with."""
    return sum(weight.size for weight in module._parametrized().values())


def _label(row: Row) -> str:
    return f"{row.kind}: {row.depth}-{row.index}" if row.depth else row.kind
