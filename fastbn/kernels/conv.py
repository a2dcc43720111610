"""Convolution as a matrix product over image patches, gathered a block at a time.

The patch matrix of image n has one row k = (channel, kernel row, kernel column) and one column p per output pixel; it
is never formed whole. Images are flat arrays with element strides (n, c, h, w), so that NCHW and channels-last are the
same code. ``window`` is (kernel h, kernel w, stride h, stride w, padding h, padding w, dilation h, dilation w).
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS
from fastbn.kernels.gemm import DEPTH_BLOCK, block_product, pack, tile_columns

PIXEL_TILES = 4
BACKWARD_ROWS = 8 * TILE_ROWS


def forward_workspace(itemsize: int) -> int:
    """Elements of workspace that one thread of ``conv2d`` needs."""
    columns = tile_columns(itemsize)
    return TILE_ROWS * columns + DEPTH_BLOCK * PIXEL_TILES * columns


def backward_data_workspace(itemsize: int, kernel: int) -> int:
    """Elements of workspace that one thread of ``conv2d_backward_data`` needs for ``kernel`` weights a channel."""
    columns = tile_columns(itemsize)
    rows = _padded_rows(max(BACKWARD_ROWS, kernel))
    return TILE_ROWS * columns + DEPTH_BLOCK * rows + (DEPTH_BLOCK + rows) * PIXEL_TILES * columns


def backward_weight_workspace(itemsize: int, out_channels: int) -> int:
    """Elements of workspace that one thread of ``conv2d_backward_weight`` needs, out_channels being a group's."""
    columns = tile_columns(itemsize)
    return TILE_ROWS * columns + DEPTH_BLOCK * (_padded_rows(out_channels) + PIXEL_TILES * columns)


def _padded_rows(rows: int) -> int:
    return -(-rows // TILE_ROWS) * TILE_ROWS


@body
def _columns_inside(size, out_size, first, step):
    """The range of outputs j in [0, out_size) whose input first + j * step lies in [0, size)."""
    low = 0 if first >= 0 else -(first // step)
    high = (size - 1 - first) // step + 1 if first < size else 0
    return min(low, out_size), max(min(high, out_size), min(low, out_size))


@body
def _copy(source, start, step, target, at, stride, count):
    if step == 1 and stride == 1:
        for q in range(count):
            target[at + q] = source[start + q]
    else:
        for q in range(count):
            target[at + q * stride] = source[start + q * step]


@body
def _gather(x, origin, shape, strides, window, k_first, k_last, p_first, p_last, out_w, panel, at, k_stride, p_stride):
    """panel[at + (k - k_first) * k_stride + (p - p_first) * p_stride] = patch[k, p], zero outside the image."""
    _, _, height, width = shape
    _, c_stride, h_stride, w_stride = strides
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    step = stride_w * w_stride
    for k in range(k_first, k_last):
        channel, offset = divmod(k, kernel_h * kernel_w)
        i, j = divmod(offset, kernel_w)
        first = j * dilation_w - pad_w
        low, high = _columns_inside(width, out_w, first, stride_w)
        row, left = divmod(p_first, out_w)
        target = at + (k - k_first) * k_stride - left * p_stride
        remaining = p_last - p_first
        while remaining > 0:
            right = min(out_w, left + remaining)
            ih = row * stride_h - pad_h + i * dilation_h
            begin, end = max(left, min(low, right)), min(right, max(high, left))
            if ih < 0 or ih >= height:
                begin, end = right, right
            source = origin + channel * c_stride + ih * h_stride + first * w_stride
            for q in range(left, begin):
                panel[target + q * p_stride] = 0
            _copy(x, source + begin * step, step, panel, target + begin * p_stride, p_stride, end - begin)
            for q in range(max(begin, end), right):
                panel[target + q * p_stride] = 0
            target += out_w * p_stride
            remaining -= right - left
            row += 1
            left = 0


@body
def _add(source, start, target, at, stride, count):
    if stride == 1:
        for q in range(count):
            target[at + q] += source[start + q]
    else:
        for q in range(count):
            target[at + q * stride] += source[start + q]


@body
def _scatter(columns, breadth, origin, strides, shape, window, rows, p_first, p_last, out_w, dx):
    """dx[pixel under patch row k, column p] += columns[k * breadth + p - p_first] for ``rows`` patch rows."""
    _, _, height, width = shape
    _, c_stride, h_stride, w_stride = strides
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    step = stride_w * w_stride
    for k in range(rows):
        channel, offset = divmod(k, kernel_h * kernel_w)
        i, j = divmod(offset, kernel_w)
        first = j * dilation_w - pad_w
        low, high = _columns_inside(width, out_w, first, stride_w)
        row, left = divmod(p_first, out_w)
        source = k * breadth - left
        remaining = p_last - p_first
        while remaining > 0:
            right = min(out_w, left + remaining)
            ih = row * stride_h - pad_h + i * dilation_h
            if 0 <= ih < height:
                target = origin + channel * c_stride + ih * h_stride + first * w_stride
                begin, end = max(left, low), min(right, high)
                _add(columns, source + begin, dx, target + begin * step, step, end - begin)
            source += out_w
            remaining -= right - left
            row += 1
            left = 0


@body
def _epilogue(rows, columns, bias, bias_start, residual, relu, out, start, row_stride, column_stride):
    for i in range(rows):
        base = start + i * row_stride
        shift = bias[bias_start + i] if bias.size else 0
        for j in range(columns):
            at = base + j * column_stride
            value = out[at] + shift
            if residual.size:
                value += residual[at]
            if relu and value < 0:
                value = 0
            out[at] = value


@body
def _forward_block(
    task, x, x_shape, x_strides, panels, bias, residual, y, y_shape, y_strides, window, groups, relu, work
):
    columns = TILE_BYTES // work.itemsize
    tile = work[: TILE_ROWS * columns]
    patches = work[tile.size :]
    channels, rows = x_shape[1] // groups, y_shape[1] // groups
    depth = channels * window[0] * window[1]
    pixels = y_shape[2] * y_shape[3]
    block = PIXEL_TILES * columns
    image, rest = divmod(task, groups * -(-pixels // block))
    group, p_block = divmod(rest, -(-pixels // block))
    p_first = p_block * block
    breadth = min(block, pixels - p_first)
    origin = image * x_strides[0] + group * channels * x_strides[1]
    start = image * y_strides[0] + group * rows * y_strides[1] + p_first * y_strides[3]
    group_panels = group * -(-rows // TILE_ROWS) * TILE_ROWS * depth
    for k in range(0, depth, DEPTH_BLOCK):
        k_last = min(depth, k + DEPTH_BLOCK)
        for p in range(0, breadth, columns):
            p_last = p_first + min(breadth, p + columns)
            _gather(
                x, origin, x_shape, x_strides, window, k, k_last, p_first + p, p_last, y_shape[3],
                patches, p * (k_last - k), columns, 1,
            )  # fmt: skip
        block_product(
            panels, group_panels + k * TILE_ROWS, TILE_ROWS * depth, patches, 0, k_last - k, rows, breadth,
            tile, y, start, y_strides[1], y_strides[3], k == 0,
        )  # fmt: skip
    if bias.size or residual.size or relu:
        _epilogue(rows, breadth, bias, group * rows, residual, relu, y, start, y_strides[1], y_strides[3])


@driver
def conv2d(
    x, x_shape, x_strides, panels, bias, residual, y, y_shape, y_strides, window, groups, relu, workspace, parallel
):
    """y = relu(conv(x) + bias + residual).

    panels: the weights (groups, row panels, K, TILE_ROWS), rows being a group's output channels. bias, residual: flat,
    may be empty; residual lies as y does.
    """
    block = PIXEL_TILES * (TILE_BYTES // workspace.itemsize)
    tasks = y_shape[0] * groups * -(-(y_shape[2] * y_shape[3]) // block)
    if parallel:
        for task in prange(tasks):
            _forward_block(
                int64(task), x, x_shape, x_strides, panels, bias, residual, y, y_shape, y_strides, window, groups, relu,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _forward_block(
                task, x, x_shape, x_strides, panels, bias, residual, y, y_shape, y_strides, window, groups, relu,
                workspace[0],
            )  # fmt: skip


@body
def _channels_at_once(channels, kernel):
    return max(1, min(channels, BACKWARD_ROWS // kernel))


@body
def _backward_data_block(task, dy, y_shape, y_strides, weight, dx, x_shape, x_strides, window, groups, work):
    columns = TILE_BYTES // work.itemsize
    kernel = window[0] * window[1]
    channels, depth = x_shape[1] // groups, y_shape[1] // groups
    at_once = _channels_at_once(channels, kernel)
    blocks = -(-channels // at_once)
    image, rest = divmod(task, groups * blocks)
    group, c_block = divmod(rest, blocks)
    c_first = c_block * at_once
    count = min(at_once, channels - c_first)
    rows = count * kernel
    origin = image * x_strides[0] + (group * channels + c_first) * x_strides[1]
    for c in range(count):
        for h in range(x_shape[2]):
            for w in range(x_shape[3]):
                dx[origin + c * x_strides[1] + h * x_strides[2] + w * x_strides[3]] = 0
    tile = work[: TILE_ROWS * columns]
    padded = -(-max(BACKWARD_ROWS, kernel) // TILE_ROWS) * TILE_ROWS
    w_panels = work[tile.size : tile.size + padded * DEPTH_BLOCK]
    dy_panels = work[tile.size + w_panels.size : tile.size + w_panels.size + DEPTH_BLOCK * PIXEL_TILES * columns]
    products = work[tile.size + w_panels.size + dy_panels.size :]
    pixels = y_shape[2] * y_shape[3]
    block = PIXEL_TILES * columns
    w_start = (group * depth * channels + c_first) * kernel
    dy_start = image * y_strides[0] + group * depth * y_strides[1]
    for p in range(0, pixels, block):
        breadth = min(block, pixels - p)
        for k in range(0, depth, DEPTH_BLOCK):
            steps = min(DEPTH_BLOCK, depth - k)
            pack(weight, w_start + k * channels * kernel, 1, channels * kernel, rows, steps, TILE_ROWS, w_panels, 0)
            pack(
                dy, dy_start + k * y_strides[1] + p * y_strides[3], y_strides[3], y_strides[1], breadth, steps,
                columns, dy_panels, 0,
            )  # fmt: skip
            block_product(
                w_panels, 0, TILE_ROWS * steps, dy_panels, 0, steps, rows, breadth, tile, products, 0, block, 1, k == 0
            )
        _scatter(products, block, origin, x_strides, x_shape, window, rows, p, p + breadth, y_shape[3], dx)


@driver
def conv2d_backward_data(dy, y_shape, y_strides, weight, dx, x_shape, x_strides, window, groups, workspace, parallel):
    """dx = the gradient of ``conv2d`` to x; every task owns some channels of one image. weight: flat, as PyTorch's."""
    channels = x_shape[1] // groups
    tasks = x_shape[0] * groups * -(-channels // _channels_at_once(channels, window[0] * window[1]))
    if parallel:
        for task in prange(tasks):
            _backward_data_block(
                int64(task), dy, y_shape, y_strides, weight, dx, x_shape, x_strides, window, groups,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _backward_data_block(
                task, dy, y_shape, y_strides, weight, dx, x_shape, x_strides, window, groups, workspace[0]
            )


@body
def _backward_weight_block(
    task, images_at_once, dy, y_shape, y_strides, x, x_shape, x_strides, window, groups, partials, work
):
    columns = TILE_BYTES // work.itemsize
    channels, rows = x_shape[1] // groups, y_shape[1] // groups
    breadth = channels * window[0] * window[1]
    block = PIXEL_TILES * columns
    k_blocks = -(-breadth // block)
    split, rest = divmod(task, groups * k_blocks)
    group, k_block = divmod(rest, k_blocks)
    k_first = k_block * block
    used = min(block, breadth - k_first)
    tile = work[: TILE_ROWS * columns]
    dy_panels = work[tile.size : tile.size + -(-rows // TILE_ROWS) * TILE_ROWS * DEPTH_BLOCK]
    patches = work[tile.size + dy_panels.size :]
    pixels = y_shape[2] * y_shape[3]
    start = ((split * groups + group) * rows) * breadth + k_first
    first_image = split * images_at_once
    for image in range(first_image, min(x_shape[0], first_image + images_at_once)):
        origin = image * x_strides[0] + group * channels * x_strides[1]
        dy_start = image * y_strides[0] + group * rows * y_strides[1]
        for p in range(0, pixels, DEPTH_BLOCK):
            steps = min(DEPTH_BLOCK, pixels - p)
            pack(dy, dy_start + p * y_strides[3], y_strides[1], y_strides[3], rows, steps, TILE_ROWS, dy_panels, 0)
            for k in range(0, used, columns):
                k_last = min(used, k + columns)
                base = k * steps
                if k_last - k < columns:
                    for i in range(steps * columns):
                        patches[base + i] = 0
                _gather(
                    x, origin, x_shape, x_strides, window, k_first + k, k_first + k_last, p, p + steps, y_shape[3],
                    patches, base, 1, columns,
                )  # fmt: skip
            block_product(
                dy_panels, 0, TILE_ROWS * steps, patches, 0, steps, rows, used, tile, partials, start, breadth, 1,
                image == first_image and p == 0,
            )  # fmt: skip


@driver
def conv2d_backward_weight(
    images_at_once, dy, y_shape, y_strides, x, x_shape, x_strides, window, groups, partials, workspace, parallel
):
    """partials[s] = the gradient of ``conv2d`` to its weights from the s-th run of ``images_at_once`` images."""
    block = PIXEL_TILES * (TILE_BYTES // workspace.itemsize)
    breadth = x_shape[1] // groups * window[0] * window[1]
    tasks = -(-x_shape[0] // images_at_once) * groups * -(-breadth // block)
    if parallel:
        for task in prange(tasks):
            _backward_weight_block(
                int64(task), images_at_once, dy, y_shape, y_strides, x, x_shape, x_strides, window, groups, partials,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _backward_weight_block(
                task, images_at_once, dy, y_shape, y_strides, x, x_shape, x_strides, window, groups, partials,
                workspace[0],
            )  # fmt: skip
