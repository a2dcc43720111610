"""Mean and variance of every channel, and the channel sums of batch norm's backward.

The input is cut into chunks by its shape alone. Within a chunk the mean is found first and the squares are summed
about it while the chunk is still in cache; accumulation is in float64. Chunks are merged in order by the caller.
"""

from numba import float64, int64, prange

from fastbn.kernels._jit import driver, sum_body

CHUNK = 8192  # elements of one channel (ncs), or of all channels together (mc), in one chunk


def chunks_ncs(n: int, s: int) -> tuple[int, int]:
    """Images and positions in one chunk of an (N, C, S) array."""
    return max(1, min(n, CHUNK // max(s, 1))), max(1, min(s, CHUNK))


def rows_mc(m: int, c: int) -> int:
    """Rows in one chunk of an (M, C) array."""
    return max(1, min(m, max(16, 4 * CHUNK // max(c, 1))))


@sum_body
def _chunk_moments_ncs(x, n_first, n_last, c, s_first, s_last):
    shift = float64(x[n_first, c, s_first])  # float32 differences could overflow
    count = (n_last - n_first) * (s_last - s_first)
    total = 0.0
    for n in range(n_first, n_last):
        for s in range(s_first, s_last):
            total += x[n, c, s] - shift
    mean = shift + total / count
    squares = 0.0
    for n in range(n_first, n_last):
        for s in range(s_first, s_last):
            d = x[n, c, s] - mean
            squares += d * d
    return mean, squares


@sum_body
def _moments_ncs_task(task, x, n_block, s_block, means, squares):
    chunk, c = divmod(task, x.shape[1])
    i, j = divmod(chunk, -(-x.shape[2] // s_block))
    n_last, s_last = min(x.shape[0], (i + 1) * n_block), min(x.shape[2], (j + 1) * s_block)
    means[chunk, c], squares[chunk, c] = _chunk_moments_ncs(x, i * n_block, n_last, c, j * s_block, s_last)


@driver
def moments_ncs(x, n_block, s_block, means, squares, parallel):
    """means, squares (chunks, C): each chunk's mean and sum of squares about it; chunks are n-major."""
    tasks = means.size
    if parallel:
        for task in prange(tasks):
            _moments_ncs_task(int64(task), x, n_block, s_block, means, squares)
    else:
        for task in range(tasks):
            _moments_ncs_task(task, x, n_block, s_block, means, squares)


@sum_body
def _moments_mc_task(chunk, x, m_block, means, squares):
    first = chunk * m_block
    last = min(x.shape[0], first + m_block)
    mean, square = means[chunk], squares[chunk]
    for c in range(x.shape[1]):
        mean[c] = 0.0
        square[c] = 0.0
    for m in range(first, last):
        for c in range(x.shape[1]):
            mean[c] += float64(x[m, c]) - float64(x[first, c])
    for c in range(x.shape[1]):
        mean[c] = x[first, c] + mean[c] / (last - first)
    for m in range(first, last):
        for c in range(x.shape[1]):
            d = x[m, c] - mean[c]
            square[c] += d * d


@driver
def moments_mc(x, m_block, means, squares, parallel):
    """means, squares (chunks, C), as in ``moments_ncs``, for x (M, C) cut into runs of ``m_block`` rows."""
    chunks = means.shape[0]
    if parallel:
        for chunk in prange(chunks):
            _moments_mc_task(int64(chunk), x, m_block, means, squares)
    else:
        for chunk in range(chunks):
            _moments_mc_task(chunk, x, m_block, means, squares)


@sum_body
def _plain_sums_task(task, x, n_block, s_block, sums):
    chunk, c = divmod(task, x.shape[1])
    i, j = divmod(chunk, -(-x.shape[2] // s_block))
    total = 0.0
    for n in range(i * n_block, min(x.shape[0], (i + 1) * n_block)):
        for s in range(j * s_block, min(x.shape[2], (j + 1) * s_block)):
            total += x[n, c, s]
    sums[chunk, c] = total


@driver
def sums_ncs(x, n_block, s_block, sums, parallel):
    """sums (chunks, C): each chunk's sum; chunks are n-major."""
    tasks = sums.size
    if parallel:
        for task in prange(tasks):
            _plain_sums_task(int64(task), x, n_block, s_block, sums)
    else:
        for task in range(tasks):
            _plain_sums_task(task, x, n_block, s_block, sums)


@sum_body
def _sums_ncs_task(task, dy, x, y, mean, n_block, s_block, sums, products):
    chunk, c = divmod(task, x.shape[1])
    i, j = divmod(chunk, -(-x.shape[2] // s_block))
    masked = y.size > 0
    total = 0.0
    product = 0.0
    for n in range(i * n_block, min(x.shape[0], (i + 1) * n_block)):
        for s in range(j * s_block, min(x.shape[2], (j + 1) * s_block)):
            g = dy[n, c, s]
            if masked and y[n, c, s] <= 0:
                g = 0
            total += g
            product += g * (x[n, c, s] - mean[c])
    sums[chunk, c] = total
    products[chunk, c] = product


@driver
def backward_sums_ncs(dy, x, y, mean, n_block, s_block, sums, products, parallel):
    """sums, products (chunks, C): of g and of g * (x - mean), g being dy, or dy where y > 0 if y is not empty."""
    tasks = sums.size
    if parallel:
        for task in prange(tasks):
            _sums_ncs_task(int64(task), dy, x, y, mean, n_block, s_block, sums, products)
    else:
        for task in range(tasks):
            _sums_ncs_task(task, dy, x, y, mean, n_block, s_block, sums, products)


@sum_body
def _sums_mc_task(chunk, dy, x, y, mean, m_block, sums, products):
    masked = y.size > 0
    total, product = sums[chunk], products[chunk]
    for c in range(x.shape[1]):
        total[c] = 0.0
        product[c] = 0.0
    for m in range(chunk * m_block, min(x.shape[0], (chunk + 1) * m_block)):
        for c in range(x.shape[1]):
            g = dy[m, c]
            if masked and y[m, c] <= 0:
                g = 0
            total[c] += g
            product[c] += g * (x[m, c] - mean[c])


@driver
def backward_sums_mc(dy, x, y, mean, m_block, sums, products, parallel):
    """sums, products (chunks, C), as in ``backward_sums_ncs``, for (M, C) arrays."""
    chunks = sums.shape[0]
    if parallel:
        for chunk in prange(chunks):
            _sums_mc_task(int64(chunk), dy, x, y, mean, m_block, sums, products)
    else:
        for chunk in range(chunks):
            _sums_mc_task(chunk, dy, x, y, mean, m_block, sums, products)
