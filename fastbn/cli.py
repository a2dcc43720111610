"""``python -m fastbn``: train the built-in network, examine a model, or compile the kernels ahead of time."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastbn import data, training
from fastbn._files import check_target
from fastbn.diagnosis import command as doctor
from fastbn.errors import ArgumentError, FastbnError
from fastbn.models import lenet
from fastbn.models.norms import NORMS
from fastbn.nn.init import manual_seed
from fastbn.nn.module import Module
from fastbn.optim import SGD, CosineAnnealingLR
from fastbn.training import checkpoint
from fastbn.training.history import Epoch, History
from fastbn.training.plot import plot_histories, require_matplotlib
from fastbn.training.progress import epoch_line

TITLES = {name: f"with {name} norm" for name in NORMS} | {"fixup": "with FixUp", "none": "without batch norm"}
BOTH = ["batch", "none"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong on one line of stderr."""
        print(f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def run(prog: str, action: Callable[[], int]) -> int:
    """The exit code of ``action``; an error that fastbn raises on purpose is one line on stderr, and 2."""
    try:
        return action()
    except FastbnError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, OSError) as error:
        print(f"{prog}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def integer(low: int) -> Callable[[str], int]:
    """An argument type: an integer of at least ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
        return value

    return parse


def number(low: float, *, above: bool = False) -> Callable[[str], float]:
    """An argument type: a finite number of at least ``low``, or above it."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value > low if above else value >= low) or value == float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be a number {'above' if above else 'of at least'} {low:g}, got {text!r}"
            )
        return value

    return parse


def train_lenet(
    dataset: data.Dataset,
    *,
    norm: str,
    epochs: int,
    batch_size: int = 64,
    lr: float = 0.05,
    momentum: float = 0.9,
    seed: int = 0,
    save_to: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> tuple[Module, History]:
    """LeNet trained on ``dataset`` by SGD, its rate falling along half a cosine; the test split is the validation."""
    manual_seed(seed)
    model = lenet(norm=norm)
    optimizer = SGD(model.parameters(), lr=lr, momentum=momentum)
    history = training.fit(
        model,
        dataset.train,
        dataset.test,
        epochs=epochs,
        optimizer=optimizer,
        batch_size=batch_size,
        scheduler=CosineAnnealingLR(optimizer, T_max=max(epochs, 1)),
        seed=seed,
        checkpoint=save_to,
        resume=resume,
        on_epoch=on_epoch,
    )
    return model, history


def _train(options: argparse.Namespace) -> int:
    folder = Path(options.out)
    norms = BOTH if options.norm == "both" else [options.norm]
    picture = folder / f"lenet-{options.data}.png"
    checkpoints = {norm: folder / f"lenet-{options.data}-{norm}.safetensors" for norm in norms}
    require_matplotlib()
    for target in (picture, *checkpoints.values()):
        check_target(target)
    dataset = data.load(options.data)
    say = sys.stderr if options.json else sys.stdout
    histories: dict[str, History] = {}
    for norm in norms:
        print(f"LeNet {TITLES[norm]}, {options.data}, batch {options.batch_size}", file=say, flush=True)

        def report(index: int, epoch: Epoch) -> None:
            print(f"  epoch {index + 1:2}/{options.epochs}  {epoch_line(epoch)}", file=say, flush=True)

        _, histories[TITLES[norm]] = train_lenet(
            dataset,
            norm=norm,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            momentum=options.momentum,
            seed=options.seed,
            save_to=checkpoints[norm],
            resume=options.resume,
            on_epoch=report,
        )
    plot_histories(histories, picture, title=f"LeNet on {options.data}")
    print(f"written: {', '.join(str(path) for path in (*checkpoints.values(), picture))}", file=say)
    if options.json:
        runs = {norm: json.loads(histories[TITLES[norm]].to_json()) for norm in norms}
        print(json.dumps({"data": options.data, "picture": str(picture), "runs": runs}))
    return 0


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


def shape_of(text: str) -> tuple[int, ...]:
    """An argument type: sizes like 3,224,224."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes of one sample such as 3,224,224, got {text!r}")
    return sizes


def _parser() -> Parser:
    parser = Parser(prog="python -m fastbn", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    train = commands.add_parser(
        "train",
        help="train LeNet with and without batch norm, and draw both",
        description="Train LeNet with and without batch norm. Writes a checkpoint of each run and a picture of both.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("--data", choices=list(data.DATASETS), default="digits", help="mnist is read from $FASTBN_DATA/mnist")
    add("--norm", choices=[*NORMS, "both"], default="both", help="norm of the hidden layers; both: batch and none")
    add("--epochs", type=integer(1), default=10, metavar="N", help="passes over the training data")
    add("--batch-size", type=integer(2), default=64, metavar="N", help="samples in one step")
    add("--lr", type=number(0, above=True), default=0.05, help="first learning rate; it falls along half a cosine")
    add("--momentum", type=number(0), default=0.9, help="momentum of SGD")
    add("--seed", type=integer(0), default=0, metavar="N", help="seed of initial values and of the order of samples")
    add("--out", default=".", metavar="DIR", help="folder for the files written")
    add("--resume", action="store_true", help="go on from the checkpoints in DIR")
    add("--json", action="store_true", help="figures as JSON on stdout, everything else on stderr")
    train.set_defaults(action=_train)
    warm = commands.add_parser("warmup", help="compile kernels into the cache", description="Compile kernels ahead.")
    warm.add_argument("model", nargs="?", help="a checkpoint; every float32 kernel without one")
    warm.add_argument("--input-shape", type=shape_of, metavar="C,H,W", help="one sample's shape")
    warm.set_defaults(action=_warmup)
    doctor.add_to(commands, integer(1))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options: Any = parser.parse_args(arguments)
    return run(parser.prog, lambda: options.action(options))
