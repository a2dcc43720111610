"""Initial values, drawn from one generator that ``manual_seed`` sets. Functions ending in _ fill in place.

As ``torch.nn.init``: each takes a Parameter or an array of floats and returns it. Weights are (out, in, *kernel);
fan_in is in * kernel, fan_out is out * kernel. With fan the one that is kept at variance 1,

    Kaiming (He et al. 2015, arXiv 1502.01852, eq. 10 and 14):         std = sqrt(2 / fan), fan_in by default
    Xavier (Glorot and Bengio 2010, eq. 12 and 16):                    std = sqrt(2 / (fan_in + fan_out))

and a uniform distribution of that variance reaches to sqrt(3) std. Books and articles often print other factors: the
one's under the other's name, a single fan for Xavier's sum, a variance for a standard deviation, or no 2. Each layer
then multiplies the variance by what is missing, so that the error is its power to the depth.
"""

import math
from typing import TypeVar

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_writable
from fastbn.errors import ArgumentError, DtypeError
from fastbn.nn.parameter import Parameter

Weights = TypeVar("Weights", np.ndarray, Parameter)

GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}

_generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Make the initial values that follow the same in every run. Raises ArgumentError, DtypeError."""
    global _generator
    check_int("manual_seed", "seed", seed, 0)
    _generator = np.random.default_rng(seed)


def spawn_generator() -> np.random.Generator:
    """A generator for what a layer draws later; the initial values that follow are the same without it."""
    return _generator.spawn(1)[0]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor of a standard deviation that makes up for what an activation takes away, PyTorch's table.

    "linear", "conv1d", "conv2d", "conv3d", "sigmoid": 1; "tanh": 5 / 3; "relu": sqrt(2); "leaky_relu":
    sqrt(2 / (1 + param^2)), param being its slope, 0.01 if None; "selu": 3 / 4. Raises ArgumentError, DtypeError.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        check_number("calculate_gain", "param", slope, -np.inf)
        return math.sqrt(2.0 / (1.0 + slope * slope))
    if nonlinearity not in GAINS:
        names = ", ".join([*GAINS, "leaky_relu"])
        raise ArgumentError(f"calculate_gain: nonlinearity must be one of {names}, got {nonlinearity!r}")
    return GAINS[nonlinearity]


def uniform_(array: Weights, a: float = 0.0, b: float = 1.0) -> Weights:
    """Uniform on [a, b)."""
    values = _values("uniform_", array)
    values[...] = _generator.uniform(a, b, values.shape)
    return array


def normal_(array: Weights, mean: float = 0.0, std: float = 1.0) -> Weights:
    """Normal with ``mean`` and standard deviation ``std``."""
    values = _values("normal_", array)
    values[...] = _generator.normal(mean, std, values.shape)
    return array


def trunc_normal_(array: Weights, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Weights:
    """Normal with ``mean`` and ``std`` before what lies outside [a, b], in units of the values, is drawn again.

    Raises ArgumentError unless std is positive and a < b.
    """
    for name, value in (("mean", mean), ("std", std), ("a", a), ("b", b)):
        check_number("trunc_normal_", name, value, -np.inf)
    if not (0.0 < std < math.inf and a < b):
        raise ArgumentError(f"trunc_normal_: std must be positive and a less than b, got {std:g}, {a:g} and {b:g}")
    values = _values("trunc_normal_", array)
    drawn = _truncated(values.size, (a - mean) / std, (b - mean) / std)
    values[...] = np.clip(mean + std * drawn.reshape(values.shape), a, b)
    return array


def constant_(array: Weights, val: float) -> Weights:
    """``val`` everywhere."""
    _values("constant_", array)[...] = val
    return array


def ones_(array: Weights) -> Weights:
    """1 everywhere."""
    return constant_(array, 1.0)


def zeros_(array: Weights) -> Weights:
    """0 everywhere."""
    return constant_(array, 0.0)


def xavier_uniform_(array: Weights, gain: float = 1.0) -> Weights:
    """Uniform with variance ``gain^2 2 / (fan_in + fan_out)``: on +-gain sqrt(6 / (fan_in + fan_out)).

    The mean of what keeps a linear layer's outputs and its gradients at variance 1; for sigmoid and tanh.
    """
    bound = math.sqrt(3.0) * _xavier_std("xavier_uniform_", array, gain)
    return uniform_(array, -bound, bound)


def xavier_normal_(array: Weights, gain: float = 1.0) -> Weights:
    """Normal with variance ``gain^2 2 / (fan_in + fan_out)``; see ``xavier_uniform_``."""
    return normal_(array, 0.0, _xavier_std("xavier_normal_", array, gain))


def kaiming_uniform_(array: Weights, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Weights:
    """Uniform with variance ``gain^2 / fan``: on +-gain sqrt(3 / fan).

    mode: "fan_in" keeps the variance of activations, "fan_out" that of gradients. gain: ``calculate_gain`` of
    ``nonlinearity``, a being the slope of "leaky_relu" alone; with a = 0 the variance is 2 / fan.
    """
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", array, a, mode, nonlinearity)
    return uniform_(array, -bound, bound)


def kaiming_normal_(array: Weights, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Weights:
    """Normal with variance ``gain^2 / fan``; see ``kaiming_uniform_``."""
    return normal_(array, 0.0, _kaiming_std("kaiming_normal_", array, a, mode, nonlinearity))


def orthogonal_(array: Weights, gain: float = 1.0) -> Weights:
    """``gain`` times a random matrix (out, in * kernel) whose rows, or columns if fewer, are orthonormal.

    Uniform among all of them (Saxe et al. 2013, arXiv 1312.6120; Mezzadri 2007 for the signs).
    """
    values = _values("orthogonal_", array)
    if values.ndim < 2:
        raise ArgumentError(f"orthogonal_: array must have at least 2 axes, got shape {values.shape}")
    if values.size:
        rows, columns = len(values), values[0].size
        q, r = np.linalg.qr(_generator.normal(size=(max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -1.0, 1.0)
        values[...] = gain * (q.T if rows < columns else q).reshape(values.shape)
    return array


def _values(who: str, array: np.ndarray | Parameter) -> np.ndarray:
    """What is to be filled."""
    if isinstance(array, Parameter):
        array.unlock()
        return array.data
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"{who}: array must be a Parameter or a NumPy array, got {type(array).__name__}")
    check_float(who, "array", array)
    check_writable(who, "array", array)
    return array


def _fans(who: str, array: np.ndarray | Parameter) -> tuple[int, int]:
    """Inputs that meet in one output, and outputs that one input goes to."""
    values = _values(who, array)
    if values.ndim < 2 or values.size == 0:
        raise ArgumentError(f"{who}: array must have at least 2 axes, none empty, got shape {values.shape}")
    kernel = values[0, 0].size
    return values.shape[1] * kernel, values.shape[0] * kernel


def _xavier_std(who: str, array: np.ndarray | Parameter, gain: float) -> float:
    return gain * math.sqrt(2.0 / sum(_fans(who, array)))


def _kaiming_std(who: str, array: np.ndarray | Parameter, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"{who}: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(who, array)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _truncated(count: int, low: float, high: float) -> np.ndarray:
    """``count`` standard normal numbers from [low, high].

    Proposed by the normal distribution where it falls there often enough, else by a uniform one, which is accepted
    with the ratio of densities. Beyond the end that is nearest to 0 no further is looked than double precision sees.
    """
    nearest = min(max(low, 0.0), high)
    reach = min(10.0, 40.0 / max(abs(nearest), 1.0))
    low, high = max(low, nearest - reach), min(high, nearest + reach)
    by_normal = 0.5 * (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0))) > 0.25
    drawn = np.empty(0)
    while drawn.size < count:
        wanted = 2 * (count - drawn.size) + 16
        if by_normal:
            proposed = _generator.normal(size=wanted)
            kept = (proposed >= low) & (proposed <= high)
        else:
            proposed = _generator.uniform(low, high, wanted)
            kept = _generator.random(wanted) < np.exp((nearest * nearest - proposed * proposed) / 2.0)
        drawn = np.concatenate([drawn, proposed[kept]])
    return drawn[:count]
