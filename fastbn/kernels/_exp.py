"""exp for arguments of at most 0, in plain arithmetic: LLVM can put it into vectors, which it cannot a call of libm."""

from llvmlite import ir
from numba import float64, int32
from numba.extending import intrinsic

from fastbn.kernels._jit import body

LOWEST = -708.0  # exp of less is not a normal float64, and counts as 0
LOG2_E = 1.4426950408889634
LN_2_HIGH = 0.693145751953125  # 15 bits: its product with an exponent is exact
LN_2_LOW = 1.4286068203094172e-06


@intrinsic
def _power_of_two(typingctx, n):
    """2 ** n as float64, for -1022 <= n <= 1023."""

    def codegen(context, builder, signature, arguments):
        long = ir.IntType(64)
        exponent = builder.add(builder.sext(arguments[0], long), ir.Constant(long, 1023))
        return builder.bitcast(builder.shl(exponent, ir.Constant(long, 52)), ir.DoubleType())

    return float64(int32), codegen


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
    value = p * _power_of_two(n)
    return value if x >= LOWEST else 0.0 if x < LOWEST else float64(x)
