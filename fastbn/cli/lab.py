"""``python -m fastbn lab``: experiments by name."""

import argparse
import time
from pathlib import Path
from typing import Any

from fastbn import data
from fastbn._progress import Bar
from fastbn.cli.arguments import integer, number
from fastbn.lab.catalogue import EXPERIMENTS
from fastbn.lab.experiment import Options
from fastbn.lab.report import targets, write
from fastbn.training.plot import require_matplotlib

ALL = "all"


def add_lab(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    lab = commands.add_parser(
        "lab",
        help="repeat the experiments about batch norm; draw them and judge what is claimed",
        description="Run an experiment. Writes a picture and the figures, and says of every claim whether it held.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = lab.add_argument
    names = [*EXPERIMENTS, ALL]
    add("name", nargs="?", choices=names, metavar="NAME", help=f"{', '.join(names)}; nothing lists them")
    add("--data", choices=list(data.DATASETS), default="digits", help="mnist is read from $FASTBN_DATA/mnist")
    add("--out", default=".", metavar="DIR", help="folder for the files written")
    add("--seed", type=integer(0), default=0, metavar="N", help="seed of initial values and of the order of samples")
    add("--effort", type=number(0, above=True), default=1.0, metavar="X", help="multiple of the steps and grids")
    lab.set_defaults(action=_lab)


def _lab(options: argparse.Namespace) -> int:
    if options.name is None:
        width = max(len(name) for name in EXPERIMENTS)
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:<{width}}  {experiment.title}\n{'':<{width}}  {experiment.source}")
        return 0
    chosen = list(EXPERIMENTS.values()) if options.name == ALL else [EXPERIMENTS[options.name]]
    require_matplotlib()
    folder = Path(options.out)
    paths = [targets(experiment, options.data, folder) for experiment in chosen]
    dataset = data.load(options.data)
    settings = Options(options.seed, options.effort)
    held = total = 0
    for experiment, written in zip(chosen, paths, strict=True):
        print(f"{experiment.name}: {experiment.title} ({experiment.source})", flush=True)
        begun = time.perf_counter()
        with Bar(experiment.name) as bar:
            result = experiment.run(dataset, settings, bar)
        write(experiment, result, dataset, settings, folder)
        for claim in result.claims:
            print(f"  {claim}")
        print(f"  written: {', '.join(map(str, written))}; {time.perf_counter() - begun:.1f} s", flush=True)
        held += sum(claim.holds for claim in result.claims)
        total += len(result.claims)
    print(f"{held} of {total} claims reproduced")
    return 0
