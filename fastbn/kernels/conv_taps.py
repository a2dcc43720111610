"""Weights of one channel a group, (C, kernel), as ``conv_depthwise`` takes them, (taps, C to a whole vector)."""

from fastbn.kernels._jit import serial_driver


@serial_driver
def pack_taps(weight, taps, weights):
    """The ``taps`` of ``weight`` into ``weights``, 0 past the last channel."""
    channels = weight.shape[0]
    for t in range(taps.size):
        for c in range(channels):
            weights[t, c] = weight[c, taps[t]]
        weights[t, channels:] = 0


@serial_driver
def add_taps(partials, taps, dweight):
    """The sum of ``partials`` (splits, taps, C to a whole vector) into ``taps`` of ``dweight``, 0 into its others."""
    sums = partials[0]
    for split in range(1, partials.shape[0]):
        for t in range(taps.size):
            for c in range(sums.shape[1]):
                sums[t, c] += partials[split, t, c]
    for c in range(dweight.shape[0]):
        dweight[c] = 0
        for t in range(taps.size):
            dweight[c, taps[t]] = sums[t, c]
