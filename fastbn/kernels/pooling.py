"""What max and average pooling share. Images are flat arrays with element strides (n, c, h, w).

``window`` is (kernel h, kernel w, stride h, stride w, padding h, padding w, dilation h, dilation w).
"""

from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import store_part

# 2 x 2 windows side by side: the most common ones, and loops without bounds.
PAIRS = (2, 2, 2, 2, 0, 0, 1, 1)
# Channels of a backward task where they lie together; max_pool_backward takes 1.3 times as long with 16.
GROUP = 64


@inlined
def channels_together(x_strides, y_strides):
    """Whether a vector holds channels of one pixel."""
    return x_strides[1] == 1 and y_strides[1] == 1


@inlined
def are_pairs(window, x_shape, y_shape):
    """Whether windows are ``PAIRS``, none of them cut by the edge."""
    return window == PAIRS and 2 * y_shape[2] <= x_shape[2] and 2 * y_shape[3] <= x_shape[3]


@inlined
def clear_pixels(dx, start, pixels, stride, channels):
    """Zeros in the first ``channels`` of each pixel."""
    lanes, zero = lanes_of(dx), splat(dx, 0.0)
    for pixel in range(pixels):
        for c in range(0, channels, lanes):
            store_part(dx, start + pixel * stride + c, zero, min(lanes, channels - c))
