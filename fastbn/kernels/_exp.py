"""exp for arguments of at most 0, in plain arithmetic, which LLVM can put into vectors as it cannot a call of libm."""

import math

import numpy as np
from llvmlite import ir
from numba import float64, int32
from numba.extending import intrinsic

from fastbn.kernels._jit import body
from fastbn.kernels._vector import DOUBLE, FLOAT, I32, I64, constant, fused

LOWEST = -708.0  # exp of less is not a normal float64, and counts as 0
LOG2_E = 1.4426950408889634
LN_2_HIGH = 0.693145751953125  # 15 bits: its product with an exponent is exact
LN_2_LOW = 1.4286068203094172e-06
# For vectors: where 1 / (1 + exp(-x)) is 0 and where it is 1, log2 e, and ln 2 in two parts, the first in few bits.
SINGLES = tuple(float(np.float32(number)) for number in (-89.0, 87.0, LOG2_E, 0.693359375, -2.12194440e-4))
DOUBLES = -710.0, 708.0, LOG2_E, LN_2_HIGH, LN_2_LOW


@intrinsic
def _power_of_two(typingctx, n):
    """2 ** n in float64, for the exponents of normal numbers."""

    def codegen(context, builder, signature, arguments):
        exponent = builder.add(builder.sext(arguments[0], I64), ir.Constant(I64, 1023))
        return builder.bitcast(builder.shl(exponent, ir.Constant(I64, 52)), DOUBLE)

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


@intrinsic
def logistic(typingctx, value):
    """1 / (1 + exp(-x)) of every lane of a vector; NaN for NaN.

    As ``exp_nonpositive``; in float32 by the Taylor polynomial of degree 7, to 1 unit in the last place. A sum with
    a large number rounds to n and leaves it, biased, in the last bits, from where it goes into the exponent of a power
    of two: infinity at the lower end, where the result is 0.
    """

    def codegen(context, builder, signature, arguments):
        x = arguments[0]
        single = x.type.element == FLOAT
        lowest, highest, log2_e, high, low = (constant(x.type, number) for number in (SINGLES if single else DOUBLES))
        digits, bias, degree = (23, 127, 7) if single else (52, 1023, 13)
        integers = ir.VectorType(I32 if single else I64, x.type.count)
        rounding, one = constant(x.type, 1.5 * 2.0**digits + bias), constant(x.type, 1.0)
        x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
        x = builder.select(builder.fcmp_ordered("<", highest, x), highest, x)
        biased = fused(builder, x, builder.fneg(log2_e), rounding)
        negated = builder.fneg(builder.fsub(biased, rounding))
        r = fused(builder, negated, low, fused(builder, negated, high, builder.fneg(x)))
        p = constant(x.type, 1 / math.factorial(degree))
        for k in reversed(range(degree)):
            p = fused(builder, p, r, constant(x.type, 1 / math.factorial(k)))
        power = builder.bitcast(builder.shl(builder.bitcast(biased, integers), constant(integers, digits)), x.type)
        return builder.fdiv(one, builder.fadd(one, builder.fmul(p, power)))

    return value(value), codegen
