"""Which batch norms to fold, by name or by pattern."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastbn.errors import ArgumentError


@dataclass(frozen=True)
class Choice:
    """A predicate on names: chosen by ``only``, where that is given, and not by ``skip``.

    only, skip: names, or patterns in which ``*``, ``?`` and ``[...]`` stand for other characters.
    """

    only: Sequence[str] = ()
    skip: Sequence[str] = ()

    def __call__(self, name: str) -> bool:
        """Whether the batch norm ``name`` is chosen."""
        return (not self.only or _any_matches(self.only, name)) and not _any_matches(self.skip, name)

    def check(self, names: Iterable[str]) -> None:
        """Raise ArgumentError, with the nearest names, for what matches none of ``names``."""
        known = list(names)
        for option, patterns in (("--only", self.only), ("--skip", self.skip)):
            for pattern in patterns:
                if not any(_matches(pattern, name) for name in known):
                    nearest = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
                    way_out = f"nearest: {', '.join(nearest)}" if nearest else "--inspect lists them"
                    raise ArgumentError(f"{option} must name batch norms of SOURCE, got {pattern!r}; {way_out}")


def _any_matches(patterns: Sequence[str], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
