"""``python -m bench.conv_numerics``: errors of 3x3 convolutions against float64, direct and Winograd, as Markdown.

An error is the largest difference from float64 on the same float32 numbers, relative to the largest right value.
"""

from types import ModuleType

import numpy as np

from bench.numerics import channels_last, error
from fastbn.functional import conv_blocks, conv_winograd
from fastbn.functional.conv_geometry import Window

WINDOW = Window((3, 3), (1, 1), (1, 1), (1, 1))
ENGINES = {"direct": conv_blocks, "Winograd": conv_winograd}
# Name: images, channels, height and width; mean of x and dy, whose standard deviation is 1
CASES = {
    "64 channels, 28 x 28": ((4, 64, 28), 0.0),
    "256 channels, 14 x 14": ((4, 256, 14), 0.0),
    "64 channels, 28 x 28, mean 10": ((4, 64, 28), 10.0),
    "256 channels, 14 x 14, mean 10": ((4, 256, 14), 10.0),
}
COLUMNS = ("y", "dx", "dweight")


def answers(
    engine: ModuleType, x: np.ndarray, weight: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, dx, dweight."""
    y = np.empty_like(dy)
    engine.forward(x, weight, None, WINDOW, 1, None, False, y)
    dweight, dx, _ = engine.backward(dy, x, weight, WINDOW, 1)
    return y, dx, dweight


def measure(case: str, engine: ModuleType) -> list[float]:
    """Errors in ``COLUMNS``."""
    (count, channels, size), mean = CASES[case]
    rng = np.random.default_rng(0)
    shape = count, channels, size, size
    x, dy = (channels_last(rng.normal(mean, 1.0, shape).astype(np.float32)) for _ in range(2))
    weight = (rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    wanted = answers(conv_blocks, *(array.astype(np.float64) for array in (x, weight, dy)))
    return [error(*pair) for pair in zip(answers(engine, x, weight, dy), wanted, strict=True)]


def main() -> None:
    names = [f"{column}: {name}" for column in COLUMNS for name in ENGINES]
    print("|", " | ".join(["x and dy", *names]), "|")
    print("|---" * (len(names) + 1) + "|")
    for case in CASES:
        errors = np.stack([measure(case, engine) for engine in ENGINES.values()], axis=1).reshape(-1)
        print("|", " | ".join([case, *(f"{value:.1e}" for value in errors)]), "|")


if __name__ == "__main__":
    main()
