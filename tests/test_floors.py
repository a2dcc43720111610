"""Imports go down the floors of DESIGN.md, or sideways inside one folder; never up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "_cache", "_checks", "_files", "_memory", "_progress", "_tables", "_tape", "_threads", "_views"},
    {"kernels"},
    {"functional"},
    {"nn", "optim"},
    {"training", "models", "data", "diagnosis"},
    {"cli", "__main__", "torch", "distributed", "lab"},
    {"export"},
]
SIDEWAYS = {("optim", "nn"), ("training", "data"), ("training", "models"), ("__main__", "cli"), ("cli", "lab")}
SIDEWAYS |= {("diagnosis", "training"), ("diagnosis", "data")}
AT_HOME = {"numba": {"kernels", "_threads"}, "llvmlite": {"kernels"}, "torch": {"torch"}, "mpi4py": {"distributed"}}
AT_HOME |= {"dask": {"distributed"}} | {name: {"export"} for name in ("onnx", "onnx_ir", "onnxruntime")}
FILES = sorted(path for folder in ("fastbn", "export") for path in (ROOT / folder).rglob("*.py"))


def room(parts):
    """The folder or file right under fastbn/, or export, or "" for the top of fastbn."""
    if parts[0] == "export":
        return "export"
    known = parts[1] if len(parts) > 1 else ""
    return known if known in set.union(*FLOORS) else ""


def floor(name):
    return next((number for number, names in enumerate(FLOORS) if name in names), len(FLOORS))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from fastbn import nn` is an import of fastbn.nn.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    here = room([part for part in parts if part != "__init__"])
    for name in imported(path):
        top, *_ = target = name.split(".")
        assert here in AT_HOME.get(top, {here}), f"{name} may be imported only in {AT_HOME[top]}"
        assert top not in ("tests", "bench")
        if top not in ("fastbn", "export") or here == "":
            continue
        there = room(target)
        if there == "":
            assert floor(here) >= 5, f"{name} is a name of the top of fastbn: import it from where it is defined"
            continue
        sideways = here == there or (here, there) in SIDEWAYS or {here, there} <= FLOORS[0]
        assert sideways or floor(there) < floor(here), f"{here} imports {name}"
