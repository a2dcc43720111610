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
from fastbn.errors import DtypeError, FastbnError, ModelError
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.instancenorm import InstanceNorm
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module

FORMAT = "fastbn.v1"

LAYERS: dict[str, type[Module]] = {
    name: value
    for name, value in vars(nn).items()
    if isinstance(value, type) and issubclass(value, Module) and value is not Module
}


def save(model: Module, path: str | Path, *, input_shape: tuple[int, ...] | None = None) -> None:
    """Write a model made of ``fastbn.nn`` layers to a safetensors file; ``load`` rebuilds it.

    input_shape: one sample's shape, kept for ``python -m export``. Functions are not saved: a ``weight_quantizer`` must
    be set again. After ``nn.fold_`` the folded layers alone are saved.
    Raises ModelError for a layer of another kind, or where ``path`` cannot be written.
    """
    write(path, model, {}, {} if input_shape is None else {"input_shape": list(input_shape)})


def load(path: str | Path) -> Module:
    """The model in a file that ``save`` wrote, in eval mode. Raises ModelError for any other file."""
    return read(path)[0].eval()


def write(path: str | Path, model: Module, arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> None:
    """``save`` with further arrays, under other names than the model's, and further JSON beside the model."""
    if not isinstance(model, Module):
        raise DtypeError(f"save: model must be a fastbn.nn.Module, got {type(model).__name__}")
    parts: list[Any] = [child for module in model.modules() for child in module.children()]
    parts += [p for module in model.modules() for p in module._parameters.values() if p is not None]
    if len({id(part) for part in parts}) < len(parts):
        raise ModelError("save: every layer and parameter must occur once in the model, got one in two places")
    header = {
        "format": FORMAT,
        "model": json.dumps(describe(model), default=_plain),
        "arrays": json.dumps(list(arrays)),
        "extra": json.dumps(extra, default=_plain),
    }
    tensors = {name: np.asarray(array, order="C") for name, array in {**model.state_dict(), **arrays}.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:
            raise ModelError(f"save: {path} must be writable, got {error}") from error


def read(path: str | Path) -> tuple[Module, dict[str, np.ndarray], dict[str, Any]]:
    """What ``write`` wrote: the model in training mode, the further arrays and the further JSON."""
    if not Path(path).is_file():
        raise ModelError(f"load: {path} must be a file, got {'a folder' if Path(path).is_dir() else 'nothing there'}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"load: {path} must be a safetensors file of NumPy's dtypes, got {error}") from error
    if header.get("format") != FORMAT:
        raise ModelError(
            f"load: {path} must be a checkpoint that fastbn.save wrote, got a safetensors file without its header; "
            "build the model and call load_state_dict"
        )
    try:
        entry = json.loads(header["model"])
        _check_sizes(entry, "", tensors)
        model = build(entry)
        extra = json.loads(header["extra"])
        if not isinstance(extra, dict):
            raise ModelError(f"load: extra must be an object, got {type(extra).__name__}")
        further = {name: tensors.pop(name) for name in json.loads(header.get("arrays", "[]"))}
        model.load_state_dict(tensors)
    except (FastbnError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise ModelError(f"load: {path} must describe a model of fastbn.nn layers, got {error}") from error
    return model, further, extra


def input_shape_of(path: str | Path, extra: dict[str, Any]) -> tuple[int, ...] | None:
    """One sample's shape, if the checkpoint holds it. Raises ModelError where it is no shape."""
    shape = extra.get("input_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or not shape or any(type(size) is not int or size < 1 for size in shape):
        raise ModelError(f"load: input_shape of {path} must be positive integers, got {shape!r}")
    return tuple(shape)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise ModelError(f"save: options must be what JSON can hold, got {type(value).__name__}")


def describe(module: Module, name: str = "model") -> dict[str, Any]:
    """A module as JSON: its class, options and children. Raises ModelError for a class outside ``fastbn.nn``."""
    kind = type(module).__name__
    if LAYERS.get(kind) is not type(module):
        raise ModelError(f"save: {name} must be a layer of fastbn.nn, got {kind}; save its state_dict instead")
    if isinstance(module, LayerBn) and module.folded:
        module = nn.Sequential({**dict(module.named_children()), **({"relu": nn.ReLU()} if module.relu else {})})
        kind = "Sequential"
    entry: dict[str, Any] = {"type": kind, "options": module.config()}
    children = {child_name: describe(child, f"{name}.{child_name}") for child_name, child in module.named_children()}
    if children:
        entry["children"] = children
    if module.dtype == np.float64 and (module._parameters or not children):
        entry["dtype"] = "float64"
    return entry


def _check_sizes(entry: dict[str, Any], path: str, tensors: dict[str, np.ndarray]) -> None:
    """Raise ModelError where a layer asks for other arrays than the file holds, before they are allocated."""
    options = entry["options"]
    wanted: dict[str, tuple[int, ...]] = {}
    if entry["type"] == "Linear":
        wanted["weight"] = (options["out_features"], options["in_features"])
    elif entry["type"] in ("Conv1d", "Conv2d", "Conv3d"):
        channels = options["in_channels"] // options.get("groups", 1)
        kernel = np.broadcast_to(options["kernel_size"], int(entry["type"][4])).tolist()
        wanted["weight"] = (options["out_channels"], channels, *kernel)
    elif entry["type"] in ("LayerNorm", "RMSNorm") and options.get("elementwise_affine", True):
        wanted["weight"] = tuple(np.atleast_1d(options["normalized_shape"]).tolist())
    elif entry["type"] == "GroupNorm" and options.get("affine", True):
        wanted["weight"] = (options["num_channels"],)
    elif issubclass(LAYERS.get(entry["type"], Module), (BatchNorm, InstanceNorm)):
        names = {"weight": "affine", "running_mean": "track_running_stats"}
        wanted = {name: (options["num_features"],) for name, option in names.items() if options.get(option, True)}
    held = entry.get("children", {}).get("parametrizations", {}).get("children", {})
    for name, shape in wanted.items():
        if name in held:
            name = f"parametrizations.{name}.{LAYERS[held[name]['type']].main}"  # type: ignore[attr-defined]
        array = tensors.get(f"{path}{name}")
        if array is None or array.shape != shape:
            got = "none" if array is None else array.shape
            raise ModelError(f"load: {path}{name} must have shape {shape}, got {got}")
    for name, child in entry.get("children", {}).items():
        _check_sizes(child, f"{path}{name}.", tensors)


def build(entry: dict[str, Any]) -> Module:
    """The module that ``describe`` described, with fresh values."""
    kind = LAYERS.get(entry["type"])
    if kind is None:
        raise ModelError(f"load: type must be a layer of fastbn.nn, got {entry['type']!r}")
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in entry["options"].items()}
    children = {name: build(child) for name, child in entry.get("children", {}).items()}
    module = kind.rebuild(options, children)
    return module.double() if entry.get("dtype") == "float64" else module
