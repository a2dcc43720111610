"""``python -m fastbn warmup``: kernels compiled ahead of the first call."""

import argparse
from typing import Any

from fastbn import training
from fastbn.cli.arguments import shape_of
from fastbn.errors import ArgumentError
from fastbn.training import checkpoint


def add_warmup(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    warm = commands.add_parser("warmup", help="compile kernels into the cache", description="Compile kernels ahead.")
    warm.add_argument("model", nargs="?", help="a checkpoint; every float32 kernel without one")
    warm.add_argument("--input-shape", type=shape_of, metavar="C,H,W", help="one sample's shape")
    warm.set_defaults(action=_warmup)


def _warmup(options: argparse.Namespace) -> int:
    if options.model is None:
        if options.input_shape is not None:
            raise ArgumentError(f"warmup: --input-shape must come with a checkpoint, got {options.input_shape} alone")
        training.warmup()
        return 0
    model, _, extra = checkpoint.read(options.model)
    shape = options.input_shape or checkpoint.input_shape_of(options.model, extra)
    if shape is None:
        raise ArgumentError("warmup: --input-shape must be given for a checkpoint that does not hold it, got none")
    training.warmup(model, (1, *shape))
    return 0
