"""exp for arguments of at most 0, in plain arithmetic: LLVM can put it into vectors, which it cannot a call of libm."""

import math

import numpy as np
from llvmlite import ir
from numba import float32, float64, int32
from numba.extending import intrinsic, overload

from fastbn.kernels._jit import body

LOWEST = -708.0  # exp of less is not a normal float64, and counts as 0
LOG2_E = 1.4426950408889634
LN_2_HIGH = 0.693145751953125  # 15 bits: its product with an exponent is exact
LN_2_LOW = 1.4286068203094172e-06
# The same in float32, for arguments whose exp is above 0 there.
LOWEST_SINGLE, LOG2_E_SINGLE = np.float32(-104.0), np.float32(LOG2_E)
LN_2_HIGH_SINGLE, LN_2_LOW_SINGLE = np.float32(0.693359375), np.float32(-2.12194440e-4)  # 10 bits, and the rest
ZERO, HALF = np.float32(0.0), np.float32(0.5)
TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(8))


def _power_of_two(number, bits, digits):
    """2 ** n as ``number``, of ``bits``, ``digits`` of them the fraction's; for the exponents of normal numbers."""

    @intrinsic
    def power(typingctx, n):
        def codegen(context, builder, signature, arguments):
            integer = ir.IntType(bits)
            n = builder.sext(arguments[0], integer) if bits > 32 else arguments[0]
            exponent = builder.add(n, ir.Constant(integer, (1 << bits - digits - 2) - 1))
            return builder.bitcast(builder.shl(exponent, ir.Constant(integer, digits)), context.get_value_type(number))

        return number(int32), codegen

    return power


_double_power, _single_power = _power_of_two(float64, 64, 52), _power_of_two(float32, 32, 23)


@body
def exp_nonpositive(x):
    """exp(x) in float64 for x <= 0, to 2 units in the last place; NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite 1980, chapter 6), and the Taylor polynomial of degree 13 in r.
    """
    clipped = float64(x) if x >= LOWEST else LOWEST  # for a NaN too, which has no exponent
    n = int32(clipped * LOG2_E - 0.5)
    r = (clipped - n * LN_2_HIGH) - n * LN_2_LOW
    p = 1 / 6227020800.0
    p = p * r + 1 / 479001600.0
    p = p * r + 1 / 39916800.0
    p = p * r + 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    value = p * _double_power(n)
    return value if x >= LOWEST else 0.0 if x < LOWEST else float64(x)


@body
def exp_nonpositive_single(x):
    """exp(x) in float32 for x <= 0, to 1 unit in the last place; NaN for NaN: the Taylor polynomial of degree 7."""
    clipped = x if x >= LOWEST_SINGLE else LOWEST_SINGLE
    n = int32(clipped * LOG2_E_SINGLE - HALF)
    r = (clipped - float32(n) * LN_2_HIGH_SINGLE) - float32(n) * LN_2_LOW_SINGLE
    p = TAYLOR[7]
    p = p * r + TAYLOR[6]
    p = p * r + TAYLOR[5]
    p = p * r + TAYLOR[4]
    p = p * r + TAYLOR[3]
    p = p * r + TAYLOR[2]
    p = p * r + TAYLOR[1]
    p = p * r + TAYLOR[0]
    half = n >> 1  # two factors: the power itself may be subnormal
    value = p * _single_power(half) * _single_power(n - half)
    return value if x >= LOWEST_SINGLE else ZERO if x < LOWEST_SINGLE else x


def exp_nonpositive_like(x):
    """exp(x) for x <= 0 in the dtype of x, for kernels to call."""


@overload(exp_nonpositive_like, inline="always")
def _by_dtype(x):
    chosen = exp_nonpositive_single if x == float32 else exp_nonpositive

    def call(x):
        return chosen(x)

    return call
