"""Weights that cannot change keep their panels: a read-only array is packed by its first convolution alone."""

import weakref
from collections.abc import Callable

import numpy as np

_kept: dict[tuple[int, str], tuple[weakref.ref[np.ndarray], np.ndarray]] = {}  # by id, while the weight lives


def packed(weight: np.ndarray, pack: Callable[[], np.ndarray], kind: str = "plain") -> np.ndarray:
    """What ``pack`` makes of ``weight`` for the forward pass; kept if ``weight`` owns its data and is read-only.

    kind: of what it makes; a weight may be packed in several.
    """
    if weight.flags.writeable or not weight.flags.owndata:
        return pack()
    key = id(weight), kind
    found = _kept.get(key)
    if found is not None and found[0]() is weight:
        return found[1]
    panels = np.array(pack())
    _kept[key] = weakref.ref(weight, lambda _: _kept.pop(key, None)), panels
    return panels
