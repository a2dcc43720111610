"""``python -m fastbn``: train the built-in network, run experiments, examine a model, or compile the kernels."""

from collections.abc import Sequence
from typing import Any

from fastbn.cli.arguments import Parser, integer, run
from fastbn.cli.lab import add_lab
from fastbn.cli.train import add_train
from fastbn.cli.warmup import add_warmup
from fastbn.diagnosis import command as doctor


def _parser() -> Parser:
    parser = Parser(prog="python -m fastbn", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (add_train, add_lab, add_warmup):
        add(commands)
    doctor.add_to(commands, integer(1))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options: Any = parser.parse_args(arguments)
    return run(parser.prog, lambda: options.action(options))
