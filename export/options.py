"""Which options of ``python -m export`` go together."""

import argparse

from fastbn.errors import ArgumentError

ONNX_ONLY = ("inspect", "dry_run", "only", "skip", "copy", "merge_branches", "allow_overridable", "calibrate", "undo")
EXCLUSIVE = {
    "inspect": ("out", "dry_run", "only", "skip", "copy", "no_fold", "report", "calibrate", "undo"),
    "dry_run": ("copy", "no_fold", "report", "calibrate", "undo"),
    "undo": ("calibrate", "only", "skip", "copy", "no_fold", "report", "merge_branches", "allow_overridable"),
    "no_fold": ("only", "skip", "merge_branches", "allow_overridable"),
}
NEEDS = {"calibration_mode": "calibrate", "batch_size": "calibrate"}


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
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise ArgumentError(f"{given[name]} must come with --{other}, got it alone")
