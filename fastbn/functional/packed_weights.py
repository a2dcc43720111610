"""Weights that cannot change keep what was made of them: a read-only array is packed by its first convolution alone."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from fastbn._memory import aligned

_kept: dict[int, tuple[weakref.ref[np.ndarray], dict[Hashable, Any]]] = {}  # by id, while the weight lives


def kept_with(weight: np.ndarray) -> dict[Hashable, Any] | None:
    """What is kept as long as ``weight``, by its kind; None unless nobody can write into it.

    It is the same for all of ``weight`` under another shape, which is part of the kind.
    """
    owner = weight if weight.base is None else weight.base
    if type(owner) is not np.ndarray or (owner is not weight and not _same_order(weight, owner)):
        return None
    found = _kept.get(id(owner))
    if found is not None and found[0]() is owner and not owner.flags.writeable:
        return found[1]
    key, kept = id(owner), dict[Hashable, Any]()
    if owner.flags.writeable or not owner.flags.owndata:
        _kept.pop(key, None)
        return None
    _kept[key] = weakref.ref(owner, lambda _: _kept.pop(key, None)), kept
    return kept


def _same_order(view: np.ndarray, owner: np.ndarray) -> bool:
    """Whether ``view`` is all that ``owner`` holds, in its order."""
    whole = view.size == owner.size and view.dtype == owner.dtype
    return whole and bool(view.flags.c_contiguous and owner.flags.c_contiguous)


def packed(weight: np.ndarray, pack: Callable[[], np.ndarray], kind: str = "plain") -> np.ndarray:
    """What ``pack`` makes of ``weight`` for the forward pass; kept where ``weight`` cannot change.

    kind: of what it makes; a weight may be packed in several.
    """
    kept = kept_with(weight)
    if kept is None:
        return pack()
    panels: np.ndarray | None = kept.get((kind, weight.shape))
    if panels is None:
        panels = kept[kind, weight.shape] = aligned(pack())
    return panels
