"""The options of ``python -m export``, and which of them go together."""

import argparse
from collections.abc import Callable

from export.calibration.adapt import BATCH_SIZE
from export.calibration.calibrate import MODES
from fastbn.cli.arguments import Parser, integer, number, shape_of
from fastbn.errors import ArgumentError

Add = Callable[..., argparse.Action]

EPOCHS = {"digits": 20, "mnist": 3}
ONNX_ONLY = ("inspect", "dry_run", "only", "skip", "copy", "merge_branches", "allow_overridable", "calibrate", "undo")
EXCLUSIVE = {
    "inspect": (
        *("out", "dry_run", "only", "skip", "copy", "no_fold", "report", "calibrate", "undo"),
        "merge_branches",
    ),
    "dry_run": ("data", "copy", "no_fold", "report", "calibrate", "undo"),
    "undo": ("data", "calibrate", "only", "skip", "copy", "no_fold", "report", "merge_branches", "allow_overridable"),
    "no_fold": ("only", "skip", "merge_branches"),
}
NEEDS = {"calibration_mode": "calibrate", "batch_size": "calibrate"}

DESCRIPTION = """
Write a network as ONNX with its batch norms folded into their neighbours, and prove with onnxruntime that it is the
same network.

SOURCE is
  nothing           trains LeNet with batch norm and writes OUT, OUT's unfolded twin and a checkpoint
  MODEL.safetensors a checkpoint that fastbn.save or fastbn.fit wrote
  MODEL.onnx        any ONNX model: its batch norms, and Mul, Add, Sub, Div with constants that amount to one, go
                    backward or forward through the operators between into a Conv, ConvTranspose, Gemm or MatMul,
                    or become one with their like; the report says why, where one stays
"""

EPILOG = """
DATA is an .npz with arrays by input name, an .npy for a model with one input, or a folder of images

exit codes:  0 verified   1 the outputs differ, or --inspect has an error or a warning   2 bad arguments or a bad file

examples:
  python -m export
  python -m export --data mnist --epochs 5 -o lenet.onnx
  python -m export model.safetensors -o model.onnx --input-shape 3,224,224
  python -m export model.onnx -o folded.onnx --json > report.json
  python -m export model.onnx -o folded.onnx --data inputs.npz
  python -m export repvgg.onnx -o folded.onnx --merge-branches
  python -m export model.onnx -o adapted.onnx --calibrate photographs/
  python -m export adapted.unfolded.onnx --undo adapted.undo.safetensors -o back.onnx
  python -m export model.onnx -o folded.onnx --skip '/head/*' --report report.html
  python -m export model.onnx --inspect --data inputs.npz
  python -m export model.onnx --dry-run --verbose
"""


def make_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="python -m export",
        usage="python -m export [SOURCE] [-o OUT.onnx] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a .safetensors checkpoint or an .onnx model")
    parser.add_argument("-o", "--out", metavar="OUT.onnx", help="the model to write (lenet.onnx without SOURCE)")
    _add_training(parser.add_argument_group("a fastbn model").add_argument)
    _add_folding(parser.add_argument_group("folding").add_argument)
    _add_proof(parser.add_argument_group("proof and report").add_argument)
    _add_calibration(parser.add_argument_group("statistics").add_argument)
    return parser


def _add_training(add: Add) -> None:
    defaults = ", ".join(f"{epochs} for {name}" for name, epochs in EPOCHS.items())
    add("--epochs", type=integer(1), metavar="N", help=f"epochs to train ({defaults})")
    add("--seed", type=integer(0), metavar="N", help="seed of the training (0)")
    add("--input-shape", type=shape_of, metavar="C,H,W", help="one sample's shape, for a checkpoint without it")
    add("--opset", type=integer(1), metavar="N", help="operator set of a fastbn model (17); an .onnx keeps its own")


def _add_folding(add: Add) -> None:
    add("--only", nargs="+", action="extend", metavar="NAME", help="fold these batch norms of an .onnx; or a pattern")
    add("--skip", nargs="+", action="extend", metavar="NAME", help="keep these batch norms of an .onnx; or a pattern")
    add("--merge-branches", action="store_true", help="convolutions and batch norms that are added become one")
    add("--allow-overridable", action="store_true", help="weights that the caller could override are constants")
    add("--no-fold", action="store_true", help="keep the batch norms")
    add("--copy", action="store_true", help="write OUT even if the .onnx has no batch norm")
    add("--dry-run", action="store_true", help="say what would be folded in an .onnx; write and prove nothing")
    add(
        "--inspect",
        action="store_true",
        help="list an .onnx and its batch norms, with what is wrong with them; write nothing",
    )


def _add_proof(add: Add) -> None:
    about = "inputs for the proof instead of random ones; without SOURCE what to train on: digits, the default, or "
    add("--data", metavar="DATA", help=about + "mnist, read from $FASTBN_DATA/mnist")
    add(
        "--tolerance",
        type=number(0),
        metavar="X",
        default=1e-4,
        help="largest difference relative to the output (1e-4)",
    )
    add("--report", metavar="FILE.html", help="the report as one HTML file with charts")
    add("--verbose", action="store_true", help="name every batch norm, of however many")
    add("--json", action="store_true", help="the report as JSON on stdout, everything else on stderr")


def _add_calibration(add: Add) -> None:
    add("--calibrate", metavar="DATA", help="estimate the statistics of an .onnx anew before folding (AdaBN)")
    add("--calibration-mode", choices=MODES, help="correct batch norms layer by layer (layers) or in one pass (once)")
    add("--batch-size", type=integer(1), metavar="N", help=f"samples of DATA to run together ({BATCH_SIZE})")
    add("--undo", metavar="FILE", help="bring back the statistics that --calibrate replaced, from its undo file")


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
