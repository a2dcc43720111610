"""Which options of ``python -m export`` go together."""

import argparse

from fastbn.errors import ArgumentError

ONNX_ONLY = ("inspect", "dry_run", "only", "skip", "copy", "merge_branches", "allow_overridable")
EXCLUSIVE = {
    "inspect": ("out", "dry_run", "only", "skip", "copy", "no_fold", "report"),
    "dry_run": ("copy", "no_fold", "report"),
    "no_fold": ("only", "skip", "merge_branches", "allow_overridable"),
}


def check_modes(options: argparse.Namespace, suffix: str) -> None:
    """Raise ArgumentError for options that do not go together."""
    given = {name: f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value}
    for name in ONNX_ONLY:
        if name in given and suffix != ".onnx":
            raise ArgumentError(f"{given[name]} must come with an .onnx SOURCE, got {options.source or 'none'}")
    for name, others in EXCLUSIVE.items():
        for other in others:
            if name in given and other in given:
                raise ArgumentError(f"{given[name]} must come without {given[other]}, got both")
