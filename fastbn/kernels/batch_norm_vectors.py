"""The formulas of batch norm for the vector at offset i: rows and tiles of every layout compute by these alone.

A vector is of one register or more. ``_first``: for its first ``count`` elements, at the end of a run. Constants are
vectors: near, scale, shift of rows NEAR_MEAN, SCALE, SHIFT of ``affine``; a, b, k, inv_std of ``slopes``; see
``channels``. low: a vector or a number. bits[word]: the signs, kept. An operand that does not apply is None, and what
it would have cost is not compiled.
"""

from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import at_least, fma
from fastbn.kernels._vector_choice import store_signs, where_bits, where_passed
from fastbn.kernels._vector_memory import load_first, load_like, prefetch_far_like, put, store_first

FAR = 2048  # elements, at least, that a map which streams its output asks ahead for its operands


@inlined
def ask(x, other, i, like):
    """Have the vectors at i, as long as ``like``, on their way to the second cache; they may lie beyond the arrays."""
    prefetch_far_like(x, i, like)
    if other is not None:
        prefetch_far_like(other, i, like)


@inlined
def normalized(x, residual, bits, i, word, near, scale, shift, low):
    """max((x - mean) * scale + shift + residual, low); the sign of the sum into bits."""
    v = fma(load_like(x, i, near) - near, scale, shift)
    if residual is not None:
        v = v + load_like(residual, i, near)
    if bits is not None:
        store_signs(bits, word, v)
    return at_least(v, low)


@inlined
def normalized_first(x, residual, bits, i, count, word, near, scale, shift, low):
    """As ``normalized``."""
    v = fma(load_first(x, i, count, near) - near, scale, shift)
    if residual is not None:
        v = v + load_first(residual, i, count, near)
    if bits is not None:
        store_signs(bits, word, v)
    return at_least(v, low)


@inlined
def words_of(bits):
    """Words of a row of ``bits``; 0 if there are none."""
    return 0 if bits is None else bits.shape[-1]


@inlined
def passed(g, d, bits, word, relu, scale, shift):
    """g where a ReLU let pass: by the signs in bits, else by d * scale + shift unless ``relu`` is None.

    relu: True, or the number above which it cuts.
    """
    if bits is not None:
        return where_bits(bits, word, g)
    if relu is not None:
        return where_passed(fma(d, scale, shift), g, relu)
    return g


@inlined
def gradient(dy, x, bits, relu, i, word, streaming, near, scale, shift, a, b, k, inv_std, dresidual):
    """a g + b (x - mean) inv_std + k, where g is dy as it ``passed``; g into dresidual."""
    d = load_like(x, i, near) - near
    g = passed(load_like(dy, i, near), d, bits, word, relu, scale, shift)
    if dresidual is not None:
        put(dresidual, i, g, streaming)
    return fma(g, a, fma(d * inv_std, b, k))


@inlined
def gradient_first(dy, x, bits, relu, i, count, word, near, scale, shift, a, b, k, inv_std, dresidual):
    """As ``gradient``."""
    d = load_first(x, i, count, near) - near
    g = passed(load_first(dy, i, count, near), d, bits, word, relu, scale, shift)
    if dresidual is not None:
        store_first(dresidual, i, g, count)
    return fma(g, a, fma(d * inv_std, b, k))
