"""What all command lines share: how they complain, and types of arguments."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from fastbn.errors import FastbnError


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


def shape_of(text: str) -> tuple[int, ...]:
    """An argument type: sizes like 3,224,224."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes of one sample such as 3,224,224, got {text!r}")
    return sizes
