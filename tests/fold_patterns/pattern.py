"""One pattern: a model as ONNX text, and the fate of its batch norms.

In the text ``BN(c)`` stands for ``BatchNormalization(c, s, b, m, v)`` and ``BN2(c)`` for one whose constants are called
s2, b2, m2, v2; the constants are made up. Arrays given by their shapes are standard normal.
"""

import re
import zlib
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
from onnx import helper
from onnx_models import statistics, text_model

IMAGE, LINE, VOLUME, MATRIX = (f"float[N, {sizes}] x" for sizes in ("2, 6, 6", "2, 9", "2, 4, 5, 3", "4"))
FREE = "float[N, 2, H, W] x"
TOLERANCE = {"float32": 3e-6, "float64": 1e-13, "float16": 3e-3, "bfloat16": 3e-2}
MACRO = re.compile(r"\bBN(\d?)(<[^>]*>)?\((\w+)\)")


@dataclass(frozen=True)
class Pattern:
    """``fate``: "gone" (the operators ``left`` are all that remain), "stays" (for a reason in which ``reason`` occurs),
    "merged" (cannot be absorbed, and is one of the sets of operators ``left``), or "either" (numbers alone count).

    ``left``: operators of the folded main graph in any order, "A B | C" if there are several answers; None: any without
    a batch norm. ``arrays``: a shape, or the array itself. ``channels``: of the batch norms, by suffix.
    """

    name: str
    fate: str
    body: str
    arrays: dict = field(default_factory=dict)
    left: str | None = None
    reason: str = ""
    x: str = IMAGE
    y: str | None = None
    rank: int | None = None
    channels: int | dict = 3
    positive: bool = False
    opset: int = 17
    ir_version: int = 8
    options: dict = field(default_factory=dict)
    overridable: tuple[str, ...] = ()
    exported: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    dtype: str = "float32"
    tolerance: float | None = None
    runs: bool = True

    @property
    def within(self):
        """The largest error of an output in float64, relative to its largest value."""
        return self.tolerance or TOLERANCE[self.dtype]

    def model(self):
        """The model; the same one at every call."""
        arrays = self._arrays(np.random.default_rng(zlib.crc32(self.name.encode())))
        axes = ", ".join(f"y{axis}" for axis in range(self.rank or self.x.count(",") + 1))
        element = self.x.split("[")[0]
        body = MACRO.sub(r"BatchNormalization\2(\3, s\1, b\1, m\1, v\1)", self.body)
        made = text_model(
            body,
            arrays,
            x=self.x,
            y=self.y or f"{element}[{axes}] y",
            opset=self.opset,
            ir_version=self.ir_version,
        )
        for name in self.overridable:
            kind = helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
            made.graph.input.append(helper.make_tensor_value_info(name, kind, arrays[name].shape))
        for text in self.functions:
            made.functions.append(onnx.parser.parse_function(text))
            made.opset_import.append(helper.make_opsetid(made.functions[-1].domain, 1))
        for name in self.exported:
            made.graph.output.append(self._declaration(made, arrays, name))
        return made

    @staticmethod
    def _declaration(model, arrays, name):
        if name in arrays:
            kind = helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
            return helper.make_tensor_value_info(name, kind, arrays[name].shape)
        known = onnx.shape_inference.infer_shapes(model).graph.value_info
        return next(value for value in known if value.name == name)

    def _arrays(self, rng):
        dtype = np.dtype(self.dtype) if self.dtype != "bfloat16" else helper.tensor_dtype_to_np_dtype(16)
        arrays = {}
        for suffix in sorted({match[0] for match in MACRO.findall(self.body)}):
            channels = self.channels if isinstance(self.channels, int) else self.channels[suffix]
            arrays |= statistics(rng, channels, suffix, dtype)
            if self.positive:
                arrays["s" + suffix] = np.abs(arrays["s" + suffix]) + dtype.type(0.1)
        for name, given in self.arrays.items():
            made = rng.standard_normal(given).astype(dtype) if isinstance(given, (tuple, int)) else np.asarray(given)
            arrays[name] = made
        return {name: array for name, array in arrays.items() if not self._is_made(name)}

    def _is_made(self, name):
        """Whether the text itself makes the value, so that it is no initialiser."""
        return re.search(rf"\b{name} = ", self.body) is not None

    def feeds(self, model, seed):
        """Inputs by name: standard normal, or all the same where ``seed`` is None; free axes differ by seed."""
        rng = np.random.default_rng(seed)
        free = {"N": 1 + (seed or 0) % 3, "H": 7 + (seed or 0) % 2, "W": 9}
        stored = {tensor.name for tensor in model.graph.initializer}
        feeds = {}
        for value in model.graph.input:
            if value.name in stored:
                continue
            kind = value.type.tensor_type
            shape = [dim.dim_value if dim.HasField("dim_value") else free[dim.dim_param] for dim in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if dtype.kind in "iub":
                feeds[value.name] = np.full(shape, (seed or 0) % 2 if dtype.kind == "b" else 2, dtype)
            else:
                feeds[value.name] = (np.full(shape, 2.5) if seed is None else rng.standard_normal(shape)).astype(dtype)
        return feeds


def gone(name, body, arrays=None, left=None, **more):
    return Pattern(name, "gone", body, arrays or {}, left, **more)


def stays(name, reason, body, arrays=None, **more):
    return Pattern(name, "stays", body, arrays or {}, reason=reason, **more)


def merged(name, body, arrays, left, **more):
    return Pattern(name, "merged", body, arrays or {}, left, **more)


def either(name, body, arrays=None, left=None, **more):
    return Pattern(name, "either", body, arrays or {}, left, **more)
