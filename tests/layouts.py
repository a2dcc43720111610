"""The same values lying in memory in ways that kernels do not read."""

import numpy as np
from helpers import channels_last


def strided(array):
    spread = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    spread[...] = array
    return spread


def backwards(array):
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def read_only_channels_last(array):
    copy = channels_last(array)
    copy.flags.writeable = False
    return copy


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    assert not memory.flags.aligned
    return memory


def unaligned_channels_last(array):
    return np.moveaxis(unaligned(np.ascontiguousarray(np.moveaxis(array, 1, -1))), -1, 1)


def big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


LAYOUTS = {
    function.__name__: function
    for function in (
        strided,
        backwards,
        np.asfortranarray,
        read_only,
        read_only_channels_last,
        unaligned,
        unaligned_channels_last,
        big_endian,
    )
}
