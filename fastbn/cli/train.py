"""``python -m fastbn train``: LeNet with and without batch norm, and a picture of both."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastbn import data, training
from fastbn._files import check_target
from fastbn.cli.arguments import integer, number
from fastbn.models import lenet
from fastbn.models.norms import NORMS
from fastbn.nn.init import manual_seed
from fastbn.nn.module import Module
from fastbn.optim import SGD, CosineAnnealingLR
from fastbn.training.history import Epoch, History
from fastbn.training.plot import plot_histories, require_matplotlib
from fastbn.training.progress import epoch_line

TITLES = {name: f"with {name} norm" for name in NORMS} | {"fixup": "with FixUp", "none": "without batch norm"}
BOTH = ["batch", "none"]


def add_train(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
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
