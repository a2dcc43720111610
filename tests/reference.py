"""Independent float64 NumPy twin of the operations under test.

Plain textbook formulas, written for clarity and not for speed: every function converts its inputs to float64, changes
none of them, and returns float64. Logical axes are always (N, C, *spatial), as in PyTorch. Nothing here shares code
with the library.
"""

import numpy as np


def _f64(array):
    """A float64 copy of the array."""
    return np.array(array, dtype=np.float64)


def _pair(value):
    """An int or a pair as a pair of ints."""
    first, second = (value, value) if np.ndim(value) == 0 else value
    return int(first), int(second)


def _per_channel(vector, ndim):
    """A vector of length C shaped to broadcast over (N, C, *spatial)."""
    return _f64(vector).reshape((1, -1) + (1,) * (ndim - 2))


def batch_norm(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    residual=None,
    relu=False,
):
    """y = relu(norm(x) * weight + bias + residual); returns (y, new_running_mean, new_running_var)."""
    x = _f64(x)
    axes = (0, *range(2, x.ndim))
    new_mean = None if running_mean is None else _f64(running_mean)
    new_var = None if running_var is None else _f64(running_var)
    if training or running_mean is None or running_var is None:
        count = x.size // x.shape[1]
        if count <= 1:
            raise ValueError("batch statistics need more than one value per channel")
        mean, var = x.mean(axis=axes), x.var(axis=axes)
        if training and new_mean is not None:
            new_mean = (1 - momentum) * new_mean + momentum * mean
        if training and new_var is not None:
            new_var = (1 - momentum) * new_var + momentum * var * count / (count - 1)
    else:
        mean, var = new_mean, new_var
    y = (x - _per_channel(mean, x.ndim)) / np.sqrt(_per_channel(var, x.ndim) + eps)
    if weight is not None:
        y = y * _per_channel(weight, x.ndim)
    if bias is not None:
        y = y + _per_channel(bias, x.ndim)
    if residual is not None:
        y = y + _f64(residual)
    if relu:
        y = np.maximum(y, 0)
    return y, new_mean, new_var


def batch_norm_backward(
    dy, x, weight=None, bias=None, eps=1e-5, residual=None, relu=False, running_mean=None, running_var=None
):
    """Returns (dx, dweight, dbias, dresidual); running statistics, when given, are constants (frozen batch norm)."""
    dy, x = _f64(dy), _f64(x)
    axes = (0, *range(2, x.ndim))
    frozen = running_mean is not None and running_var is not None
    mean = _per_channel(running_mean if frozen else x.mean(axis=axes), x.ndim)
    var = _per_channel(running_var if frozen else x.var(axis=axes), x.ndim)
    scale = _per_channel(np.ones(x.shape[1]) if weight is None else weight, x.ndim)
    shift = _per_channel(np.zeros(x.shape[1]) if bias is None else bias, x.ndim)
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (x - mean) * inv_std

    dz = dy
    if relu:
        z = x_hat * scale + shift
        if residual is not None:
            z = z + _f64(residual)
        dz = np.where(z > 0, dy, 0.0)
    dweight = (dz * x_hat).sum(axis=axes)
    dbias = dz.sum(axis=axes)
    dx_hat = dz * scale
    if frozen:
        dx = dx_hat * inv_std
    else:
        mean_dx_hat = dx_hat.mean(axis=axes, keepdims=True)
        mean_dx_hat_x_hat = (dx_hat * x_hat).mean(axis=axes, keepdims=True)
        dx = inv_std * (dx_hat - mean_dx_hat - x_hat * mean_dx_hat_x_hat)
    return dx, dweight, dbias, None if residual is None else dz.copy()


def _standardised(x, axes, eps, centred=True):
    """xhat and 1 / std over the axes; about 0 unless centred."""
    mean = x.mean(axis=axes, keepdims=True) if centred else 0.0
    inv_std = 1 / np.sqrt(np.square(x - mean).mean(axis=axes, keepdims=True) + eps)
    return (x - mean) * inv_std, inv_std


def _standardised_backward(g, xhat, inv_std, axes, centred=True):
    mean_g = g.mean(axis=axes, keepdims=True) if centred else 0.0
    return inv_std * (g - mean_g - xhat * (g * xhat).mean(axis=axes, keepdims=True))


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, centred=True):
    """centred=False: RMS norm."""
    x = _f64(x)
    y, _ = _standardised(x, tuple(range(x.ndim - len(normalized_shape), x.ndim)), eps, centred)
    y = y if weight is None else y * _f64(weight)
    return y if bias is None else y + _f64(bias)


def layer_norm_backward(dy, x, normalized_shape, weight=None, eps=1e-5, centred=True):
    """Returns (dx, dweight, dbias)."""
    dy, x = _f64(dy), _f64(x)
    split = x.ndim - len(normalized_shape)
    axes, rows = tuple(range(split, x.ndim)), tuple(range(split))
    xhat, inv_std = _standardised(x, axes, eps, centred)
    g = dy if weight is None else dy * _f64(weight)
    return _standardised_backward(g, xhat, inv_std, axes, centred), (dy * xhat).sum(axis=rows), dy.sum(axis=rows)


def _grouped(x, num_groups):
    return x.reshape(x.shape[0], num_groups, -1)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """As many groups as channels: instance norm."""
    x = _f64(x)
    y = _standardised(_grouped(x, num_groups), 2, eps)[0].reshape(x.shape)
    y = y if weight is None else y * _per_channel(weight, x.ndim)
    return y if bias is None else y + _per_channel(bias, x.ndim)


def group_norm_backward(dy, x, num_groups, weight=None, eps=1e-5):
    """Returns (dx, dweight, dbias)."""
    dy, x = _f64(dy), _f64(x)
    xhat, inv_std = _standardised(_grouped(x, num_groups), 2, eps)
    g = dy if weight is None else dy * _per_channel(weight, x.ndim)
    dx = _standardised_backward(_grouped(g, num_groups), xhat, inv_std, 2).reshape(x.shape)
    axes = (0, *range(2, x.ndim))
    return dx, (dy * xhat.reshape(x.shape)).sum(axis=axes), dy.sum(axis=axes)


def instance_norm_stats(x, running_mean, running_var, momentum):
    """The running statistics after x: both move to the means over images, the variance unbiased."""
    x = _f64(x).reshape(*x.shape[:2], -1)
    new_mean = (1 - momentum) * _f64(running_mean) + momentum * x.mean(axis=2).mean(axis=0)
    return new_mean, (1 - momentum) * _f64(running_var) + momentum * x.var(axis=2, ddof=1).mean(axis=0)


def _conv_taps(c_in, c_out, groups, kernel, stride, dilation, out_hw):
    """For each group and kernel offset (a, b): its channels, a, b, and the (padded) input slices the outputs meet."""
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = kernel, stride, dilation, out_hw
    size_in, size_out = c_in // groups, c_out // groups
    for g, a, b in np.ndindex(groups, kh, kw):
        ins, outs = slice(g * size_in, (g + 1) * size_in), slice(g * size_out, (g + 1) * size_out)
        rows = slice(a * dh, a * dh + (oh - 1) * sh + 1, sh)
        cols = slice(b * dw, b * dw + (ow - 1) * sw + 1, sw)
        yield ins, outs, a, b, rows, cols


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, residual=None, relu=False):
    """Cross-correlation with weight (C_out, C_in / groups, kh, kw), then + bias, + residual, relu."""
    x, weight = _f64(x), _f64(weight)
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    c_out, _, kh, kw = weight.shape
    oh = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    y = np.zeros((x.shape[0], c_out, oh, ow))
    for ins, outs, a, b, rows, cols in _conv_taps(x.shape[1], c_out, groups, (kh, kw), stride, dilation, (oh, ow)):
        y[:, outs] += np.einsum("nchw,oc->nohw", padded[:, ins, rows, cols], weight[outs, :, a, b])
    if bias is not None:
        y = y + _per_channel(bias, 4)
    if residual is not None:
        y = y + _f64(residual)
    return np.maximum(y, 0) if relu else y


def conv2d_backward(dy, x, weight, stride=1, padding=0, dilation=1, groups=1):
    """Gradients (dx, dweight, dbias) of the plain convolution."""
    dy, x, weight = _f64(dy), _f64(x), _f64(weight)
    stride, (ph, pw), dilation = _pair(stride), _pair(padding), _pair(dilation)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    taps = _conv_taps(x.shape[1], weight.shape[0], groups, weight.shape[2:], stride, dilation, dy.shape[2:])
    for ins, outs, a, b, rows, cols in taps:
        dpadded[:, ins, rows, cols] += np.einsum("nohw,oc->nchw", dy[:, outs], weight[outs, :, a, b])
        dweight[outs, :, a, b] = np.einsum("nohw,nchw->oc", dy[:, outs], padded[:, ins, rows, cols])
    dx = dpadded[:, :, ph : ph + x.shape[2], pw : pw + x.shape[3]].copy()
    return dx, dweight, dy.sum(axis=(0, 2, 3))


def _taps(kernel, stride, dilation, out):
    """Every offset of an n-d kernel, and the slices of the (padded) input that the outputs meet under it."""
    for offset in np.ndindex(*kernel):
        starts = [i * d for i, d in zip(offset, dilation, strict=True)]
        ends = [a + (o - 1) * s + 1 for a, o, s in zip(starts, out, stride, strict=True)]
        yield offset, tuple(slice(a, e, s) for a, e, s in zip(starts, ends, stride, strict=True))


def _several(value, axes):
    """An int or a tuple as a tuple of ``axes`` ints."""
    return tuple(int(entry) for entry in np.broadcast_to(value, axes))


def conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, residual=None, relu=False):
    """Cross-correlation over any number of axes, weight (C_out, C_in / groups, *kernel), + bias, + residual, relu."""
    x, weight = _f64(x), _f64(weight)
    axes, kernel, n = x.ndim - 2, weight.shape[2:], x.shape[0]
    stride, padding, dilation = (_several(value, axes) for value in (stride, padding, dilation))
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    sizes = zip(padded.shape[2:], dilation, kernel, stride, strict=True)
    out = [(size - d * (k - 1) - 1) // s + 1 for size, d, k, s in sizes]
    y = np.zeros((n, groups, weight.shape[0] // groups, *out))
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    for offset, places in _taps(kernel, stride, dilation, out):
        seen = padded[(..., *places)].reshape(n, groups, -1, *out)
        y += np.einsum("ngc...,goc->ngo...", seen, by_group[(..., *offset)])
    y = y.reshape(n, -1, *out)
    y = y if bias is None else y + _per_channel(bias, x.ndim)
    y = y if residual is None else y + _f64(residual)
    return np.maximum(y, 0) if relu else y


def conv_backward(dy, x, weight, stride=1, padding=0, dilation=1, groups=1):
    """Gradients (dx, dweight, dbias) of ``conv`` without residual and relu."""
    dy, x, weight = _f64(dy), _f64(x), _f64(weight)
    axes, out, n = x.ndim - 2, dy.shape[2:], x.shape[0]
    stride, padding, dilation = (_several(value, axes) for value in (stride, padding, dilation))
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    dpadded, dweight = np.zeros_like(padded), np.zeros((groups, weight.shape[0] // groups, *weight.shape[1:]))
    by_group, grad = weight.reshape(dweight.shape), dy.reshape(n, groups, -1, *out)
    for offset, places in _taps(weight.shape[2:], stride, dilation, out):
        seen = padded[(..., *places)].reshape(n, groups, -1, *out)
        dpadded[(..., *places)] += np.einsum("ngo...,goc->ngc...", grad, by_group[(..., *offset)]).reshape(n, -1, *out)
        dweight[(..., *offset)] = np.einsum("ngop,ngcp->goc", *(a.reshape(*a.shape[:3], -1) for a in (grad, seen)))
    inside = tuple(slice(p, p + size) for p, size in zip(padding, x.shape[2:], strict=True))
    return dpadded[(..., *inside)].copy(), dweight.reshape(weight.shape), dy.sum(axis=(0, *range(2, axes + 2)))


def conv_transpose2d(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Transposed convolution with weight (C_in, C_out / groups, kh, kw): each input pixel stamps its kernel."""
    x, weight = _f64(x), _f64(weight)
    (sh, sw), (dh, dw) = stride, dilation = _pair(stride), _pair(dilation)
    (ph, pw), (oph, opw) = _pair(padding), _pair(output_padding)
    (n, c_in, h, w), (kh, kw), c_out = x.shape, weight.shape[2:], weight.shape[1] * groups
    full_h = (h - 1) * sh + dh * (kh - 1) + 1 + oph
    full_w = (w - 1) * sw + dw * (kw - 1) + 1 + opw
    full = np.zeros((n, c_out, full_h, full_w))
    for ins, outs, a, b, rows, cols in _conv_taps(c_in, c_out, groups, (kh, kw), stride, dilation, (h, w)):
        full[:, outs, rows, cols] += np.einsum("nchw,co->nohw", x[:, ins], weight[ins, :, a, b])
    y = full[:, :, ph : full_h - ph, pw : full_w - pw].copy()
    return y if bias is None else y + _per_channel(bias, 4)


def linear(x, weight, bias=None, relu=False):
    """x (..., C_in) times weight (C_out, C_in) transposed, + bias, relu."""
    y = _f64(x) @ _f64(weight).T
    if bias is not None:
        y = y + _f64(bias)
    return np.maximum(y, 0) if relu else y


def linear_backward(dy, x, weight):
    """Gradients (dx, dweight, dbias) of the plain linear layer."""
    dy, x, weight = _f64(dy), _f64(x), _f64(weight)
    dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dy @ weight, dy_rows.T @ x_rows, dy_rows.sum(axis=0)


def _pool_windows(hw, kernel_size, stride, padding, dilation, ceil_mode):
    """For each output pixel: i, j, the input rows and columns in its window, the window's size with its padding."""
    kernel, padding, dilation = _pair(kernel_size), _pair(padding), _pair(dilation)
    stride = kernel if stride is None else _pair(stride)
    axes = []
    for size, k, s, p, d in zip(hw, kernel, stride, padding, dilation, strict=True):
        span = size + 2 * p - d * (k - 1) - 1
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:
            count -= 1  # the last window must start inside the input or the left padding
        windows = [range(i * s - p, i * s - p + k * d, d) for i in range(count)]
        axes.append([([q for q in w if 0 <= q < size], len([q for q in w if q < size + p])) for w in windows])
    for i, (rows, padded_rows) in enumerate(axes[0]):
        for j, (cols, padded_cols) in enumerate(axes[1]):
            yield i, j, rows, cols, padded_rows * padded_cols


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Maximum over each window (NaN wins); padding never does, and a window of padding alone gives -inf."""
    x = _f64(x)
    windows = list(_pool_windows(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode))
    y = np.full((*x.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1), -np.inf)
    for i, j, rows, cols, _ in windows:
        if rows and cols:
            y[:, :, i, j] = x[:, :, rows][:, :, :, cols].max(axis=(2, 3))
    return y


def max_pool2d_backward(dy, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Each dy goes to the first maximum of its window in row-major order (the first NaN, if there is one)."""
    dy, x = _f64(dy), _f64(x)
    dx = np.zeros_like(x)
    for i, j, rows, cols, _ in _pool_windows(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode):
        if rows and cols:
            for n, c in np.ndindex(x.shape[:2]):
                first = np.argmax(x[n, c][np.ix_(rows, cols)])  # flat and row-major; a NaN counts as the maximum
                dx[n, c, rows[first // len(cols)], cols[first % len(cols)]] += dy[n, c, i, j]
    return dx


def avg_pool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """Sum of the input in each window over the window's size clipped to the padded (or to the real) extent."""
    x = _f64(x)
    windows = list(_pool_windows(x.shape[2:], kernel_size, stride, padding, 1, ceil_mode))
    y = np.zeros((*x.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))
    for i, j, rows, cols, padded_size in windows:
        divisor = padded_size if count_include_pad else len(rows) * len(cols)
        y[:, :, i, j] = x[:, :, rows][:, :, :, cols].sum(axis=(2, 3)) / divisor
    return y


def avg_pool2d_backward(dy, x_shape, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """Each dy is shared out evenly over its window."""
    dy, dx = _f64(dy), np.zeros(x_shape)
    for i, j, rows, cols, padded_size in _pool_windows(x_shape[2:], kernel_size, stride, padding, 1, ceil_mode):
        divisor = padded_size if count_include_pad else len(rows) * len(cols)
        for row in rows:
            for col in cols:
                dx[:, :, row, col] += dy[:, :, i, j] / divisor
    return dx


def relu(x):
    """max(x, 0)."""
    return np.maximum(_f64(x), 0)


def relu_backward(dy, x):
    """dy where x > 0, else zero."""
    return np.where(_f64(x) > 0, _f64(dy), 0.0)


def relu6(x):
    """min(max(x, 0), 6)."""
    return np.clip(_f64(x), 0, 6)


def relu6_backward(dy, x):
    """dy where 0 < x < 6, else zero."""
    x = _f64(x)
    return np.where((x > 0) & (x < 6), _f64(dy), 0.0)


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    x = _f64(x)
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, decay) / (1 + decay)


def sigmoid_backward(dy, x):
    """dy * s(x) * (1 - s(x)), with 1 - s(x) taken as s(-x)."""
    x = _f64(x)
    return _f64(dy) * sigmoid(x) * sigmoid(-x)


def weight_norm(v, g, dim=0):
    """g v / |v|, with |v| over all axes but ``dim``, or over all of them if that is None."""
    v = _f64(v)
    axes = None if dim is None else tuple(axis for axis in range(v.ndim) if axis != dim)
    return _f64(g) * v / np.sqrt(np.sum(v**2, axis=axes, keepdims=dim is not None))


def spectral_norm(weight, u, v, steps=1, dim=0):
    """(weight / (u^T W v), u, v) after power iteration on W, whose rows are the indices of ``dim``."""
    weight, u, v = _f64(weight), _f64(u), _f64(v)
    matrix = np.stack([np.take(weight, index, axis=dim).ravel() for index in range(weight.shape[dim])])
    for _ in range(steps):
        u = matrix @ v / np.linalg.norm(matrix @ v)
        v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
    return weight / (u @ matrix @ v), u, v


def _log_softmax(logits):
    """log(softmax) over the class axis 1."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits, targets):
    """Mean of -log_softmax(logits)[target] over all targets; logits (N, C, *spatial), targets ints (N, *spatial)."""
    picked = np.take_along_axis(_log_softmax(_f64(logits)), np.asarray(targets, np.int64)[:, None], axis=1)
    return float(-picked.mean())


def cross_entropy_backward(logits, targets):
    """(softmax - one_hot) / number of targets."""
    logits, targets = _f64(logits), np.asarray(targets, np.int64)[:, None]
    one_hot = np.zeros_like(logits)
    np.put_along_axis(one_hot, targets, 1.0, axis=1)
    return (np.exp(_log_softmax(logits)) - one_hot) / targets.size


def sgd(params, grads, velocities, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    """One SGD step; a velocity of None starts as the (undampened) gradient. Returns (params, velocities)."""
    new_params, new_velocities = [], []
    for param, grad, velocity in zip(params, grads, velocities, strict=True):
        param, step = _f64(param), _f64(grad) + weight_decay * _f64(param)
        velocity = None if velocity is None else _f64(velocity)
        if momentum != 0:
            velocity = step if velocity is None else momentum * velocity + (1 - dampening) * step
            step = step + momentum * velocity if nesterov else velocity
        new_params.append(param - lr * step)
        new_velocities.append(velocity)
    return new_params, new_velocities


def adam(param, grad, m, v, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    """One Adam step (AdamW when decoupled), step counting from 1. Returns (param, m, v)."""
    param, grad, m, v = _f64(param), _f64(grad), _f64(m), _f64(v)
    if decoupled:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    return param - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def rmsprop(param, grad, s, m, d, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    """One RMSprop step. Returns (param, s, m, d): of squares, of gradients, the velocity."""
    param, grad, s, m, d = map(_f64, (param, grad, s, m, d))
    grad = grad + weight_decay * param
    s = alpha * s + (1 - alpha) * grad**2
    m = alpha * m + (1 - alpha) * grad
    variance = s - m**2 if centered else s
    d = momentum * d + grad / (np.sqrt(variance) + eps)
    return param - lr * d, s, m, d


def numerical_gradient(f, x, dy, h=1e-6):
    """Central differences of sum(f(x) * dy) with respect to every entry of x."""
    x, dy = _f64(x), _f64(dy)
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        grad[index] = (np.sum(f(up) * dy) - np.sum(f(down) * dy)) / (2 * h)
    return grad


def batch_renorm(x, running_mean, running_var, weight, bias, eps, r_max, d_max):
    """y and (r, d) of a training batch (1702.03275, algorithm 1)."""
    x = _f64(x)
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axis=axes), np.sqrt(x.var(axis=axes) + eps)
    running_std = np.sqrt(_f64(running_var) + eps)
    r = np.clip(std / running_std, 1 / r_max, r_max)
    d = np.clip((mean - _f64(running_mean)) / running_std, -d_max, d_max)
    mean, std, r_all, d_all, weight, bias = (_per_channel(v, x.ndim) for v in (mean, std, r, d, weight, bias))
    return ((x - mean) / std * r_all + d_all) * weight + bias, r, d


def masked_batch_norm(x, mask, weight, bias, eps=1e-5, dy=None):
    """(y, mean, unbiased variance), and (dx, dweight, dbias) if dy is given, one channel after the other."""
    kept = _f64(mask) > 0
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    mean, var, dweight, dbias = np.zeros((4, x.shape[1]))
    w = _f64(mask)[kept]
    share = w / w.sum()
    effective = w.sum() ** 2 / (w**2).sum()
    for c in range(x.shape[1]):
        values = _f64(x[:, c])[kept]
        mean[c] = (share * values).sum()
        biased = (share * (values - mean[c]) ** 2).sum()
        var[c] = biased * effective / (effective - 1)
        std = np.sqrt(biased + eps)
        x_hat = (values - mean[c]) / std
        y[:, c][kept] = x_hat * weight[c] + bias[c]
        if dy is not None:
            g = _f64(dy[:, c])[kept]
            dweight[c], dbias[c] = (g * x_hat).sum(), g.sum()
            dx[:, c][kept] = weight[c] / std * (g - share * (dbias[c] + x_hat * dweight[c]))
    return (y, mean, var), (dx, dweight, dbias)
