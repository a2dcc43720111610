"""Models as safetensors files: the arrays under their ``state_dict`` names, the architecture as JSON in the header.

Nothing in a file is executed: a file names classes of ``fastbn.nn`` and their options, nothing else.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fastbn import nn
from fastbn._files import replacing
from fastbn.errors import FastbnError, ModelError
from fastbn.nn.module import Module

FORMAT = "fastbn.v1"

LAYERS: dict[str, type[Module]] = {
    name: value for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, Module)
}


def save(model: Module, path: str | Path, *, input_shape: tuple[int, ...] | None = None) -> None:
    """Write a model made of ``fastbn.nn`` layers to a safetensors file; ``load`` rebuilds it.

    input_shape: one sample's shape, kept for ``python -m export``.
    Raises ModelError for a layer of another kind, or where ``path`` cannot be written.
    """
    write(path, model, {}, {} if input_shape is None else {"input_shape": list(input_shape)})


def load(path: str | Path) -> Module:
    """The model in a file that ``save`` wrote, in eval mode. Raises ModelError for any other file."""
    return read(path)[0].eval()


def write(path: str | Path, model: Module, arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> None:
    """``save`` with further arrays (their names start with ":") and further JSON beside the model."""
    children = [id(child) for module in model.modules() for child in module.children()]
    if len(set(children)) < len(children):
        raise ModelError("save: every layer must occur once in the model, got one shared between two places")
    header = {"format": FORMAT, "model": json.dumps(describe(model)), "extra": json.dumps(extra)}
    tensors = {name: np.asarray(array, order="C") for name, array in {**model.state_dict(), **arrays}.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def read(path: str | Path) -> tuple[Module, dict[str, np.ndarray], dict[str, Any]]:
    """What ``write`` wrote: the model in training mode, the further arrays and the further JSON."""
    if not Path(path).is_file():
        raise ModelError(f"load: {path} must be a file, got {'a folder' if Path(path).is_dir() else 'nothing there'}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelError(f"load: {path} must be a safetensors file, got {error}") from error
    if header.get("format") != FORMAT:
        raise ModelError(
            f"load: {path} must be a checkpoint that fastbn.save wrote, got a safetensors file without its header; "
            "build the model and call load_state_dict"
        )
    try:
        model = build(json.loads(header["model"]))
        extra = json.loads(header["extra"])
        model.load_state_dict({name: array for name, array in tensors.items() if not name.startswith(":")})
    except (FastbnError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"load: {path} must describe a model of fastbn.nn layers, got {error}") from error
    return model, {name: array for name, array in tensors.items() if name.startswith(":")}, extra


def describe(module: Module, name: str = "model") -> dict[str, Any]:
    """A module as JSON: its class, options and children. Raises ModelError for a class outside ``fastbn.nn``."""
    kind = type(module).__name__
    if LAYERS.get(kind) is not type(module):
        raise ModelError(f"save: {name} must be a layer of fastbn.nn, got {kind}; save its state_dict instead")
    entry: dict[str, Any] = {"type": kind, "options": module.config()}
    children = {child_name: describe(child, f"{name}.{child_name}") for child_name, child in module.named_children()}
    if children:
        entry["children"] = children
    dtype = {str(parameter.dtype) for parameter in module._parameters.values() if parameter is not None}
    if dtype - {"float32"}:
        entry["dtype"] = dtype.pop()
    return entry


def build(entry: dict[str, Any]) -> Module:
    """The module that ``describe`` described, with fresh values."""
    kind = LAYERS.get(entry["type"])
    if kind is None:
        raise ModelError(f"load: type must be a layer of fastbn.nn, got {entry['type']!r}")
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in entry["options"].items()}
    children = {name: build(child) for name, child in entry.get("children", {}).items()}
    if issubclass(kind, nn.Residual):
        own = {name: children.pop(name) for name in nn.Residual.OWN if name in children}
        module: Module = nn.Residual(children, **own)
    elif issubclass(kind, nn.Sequential):
        module = nn.Sequential(children)
    else:
        module = kind(**options)
    return module.double() if entry.get("dtype") == "float64" else module
