"""``python -m bench.conv_numerics``: errors of convolutions against float64, as Markdown.

Of 3x3 windows, direct and by Winograd's algorithm; of single pixels, by vectors and, if there is one, the matrix unit.

An error is the largest difference from float64 on the same float32 numbers, relative to the largest right value.
"""

from types import ModuleType

import numpy as np

from bench.numerics import channels_last, error
from fastbn.functional import conv_blocks, conv_point, conv_winograd
from fastbn.functional.conv_geometry import Window
from fastbn.kernels._matrix_unit import matrix_unit

WINDOW = Window((3, 3), (1, 1), (1, 1), (1, 1))
ENGINES = {"direct": conv_blocks, "Winograd": conv_winograd}
POINT_ENGINES = {"vectors": conv_blocks, "matrix unit": conv_point}
# Name: images, channels, height and width; mean of x and dy, whose standard deviation is 1
CASES = {
    "64 channels, 28 x 28": ((4, 64, 28), 0.0),
    "256 channels, 14 x 14": ((4, 256, 14), 0.0),
    "64 channels, 28 x 28, mean 10": ((4, 64, 28), 10.0),
    "256 channels, 14 x 14, mean 10": ((4, 256, 14), 10.0),
}
POINT_CASES = {
    "64 channels, 28 x 28": ((4, 64, 28), 0.0),
    "1024 channels, 14 x 14": ((4, 1024, 14), 0.0),
    "64 channels, 28 x 28, mean 10": ((4, 64, 28), 10.0),
}
COLUMNS = ("y", "dx", "dweight")


def answers(
    engine: ModuleType, window: Window, x: np.ndarray, weight: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, dx, dweight."""
    y = np.empty_like(dy)
    engine.forward(x, weight, None, window, 1, None, False, y)
    dweight, dx, _ = engine.backward(dy, x, weight, window, 1)
    return y, dx, dweight


def measure(case: tuple[tuple[int, int, int], float], window: Window, engine: ModuleType) -> list[float]:
    """Errors in ``COLUMNS``."""
    (count, channels, size), mean = case
    rng = np.random.default_rng(0)
    shape = count, channels, size, size
    x, dy = (channels_last(rng.normal(mean, 1.0, shape).astype(np.float32)) for _ in range(2))
    taps = window.kernel[0] * window.kernel[1]
    weight = rng.standard_normal((channels, channels, *window.kernel)) / np.sqrt(taps * channels)
    weight = weight.astype(np.float32)
    wanted = answers(conv_blocks, window, *(array.astype(np.float64) for array in (x, weight, dy)))
    return [error(*pair) for pair in zip(answers(engine, window, x, weight, dy), wanted, strict=True)]


def table(title: str, cases: dict, window: Window, engines: dict[str, ModuleType]) -> None:
    names = [f"{column}: {name}" for column in COLUMNS for name in engines]
    print("|", " | ".join([title, *names]), "|")
    print("|---" * (len(names) + 1) + "|")
    for name, case in cases.items():
        errors = np.stack([measure(case, window, engine) for engine in engines.values()], axis=1).reshape(-1)
        print("|", " | ".join([name, *(f"{value:.1e}" for value in errors)]), "|")


def main() -> None:
    table("3x3, x and dy", CASES, WINDOW, ENGINES)
    if matrix_unit():
        print()
        table("1x1, x and dy", POINT_CASES, conv_point.POINT, POINT_ENGINES)


if __name__ == "__main__":
    main()
