"""The answer of a rule that does not apply."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """Why a batch norm stays, in words a user can act on."""

    reason: str
