"""``python -m bench.numerics``: errors of batch norm against float64, fastbn beside PyTorch, as a Markdown table.

An error is the largest difference from float64 on the same float32 numbers, relative to the largest right value.
"""

from collections.abc import Callable

import numpy as np

import fastbn.functional as F

EPS = 1e-5
Inputs = Callable[[np.random.Generator], np.ndarray]


def _outlier_first(rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((8, 4, 32, 32))
    x[0, :, 0, 0] = 1e4
    return x


def _dark_border(rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(1e3, 1.0, (8, 4, 32, 32))
    x[:, :, :, 0] = 0
    return x


# Name: x (N, C, H, W) before it is rounded to float32, eps
CASES: dict[str, tuple[Inputs, float]] = {
    "standard normal": (lambda rng: rng.standard_normal((32, 16, 28, 28)), EPS),
    "few values: 4 a channel": (lambda rng: rng.standard_normal((1, 16, 2, 2)), EPS),
    "many values: 1.6 million a channel": (lambda rng: rng.standard_normal((8, 2, 448, 448)), EPS),
    "mean 100, std 0.01": (lambda rng: rng.normal(100, 0.01, (8, 4, 32, 32)), EPS),
    "mean 10,000, std 1": (lambda rng: rng.normal(1e4, 1.0, (8, 4, 32, 32)), EPS),
    "one outlier of 10,000 std, first": (_outlier_first, EPS),
    "mean 1,000 with a border of zeros": (_dark_border, EPS),
    "about 1e30": (lambda rng: rng.normal(0, 1e30, (8, 4, 16, 16)), EPS),
    "about 1e-20, eps 1e-45": (lambda rng: rng.normal(0, 1e-20, (8, 4, 16, 16)), 1e-45),
    "constant channels": (lambda rng: np.broadcast_to(rng.normal(0, 1e4, (1, 4, 1, 1)), (8, 4, 16, 16)), EPS),
}
COLUMNS = ("y", "running_var", "dx", "dweight")


def answers_float64(x, weight, bias, dy, eps):
    """y, running_var after a batch with momentum 1, dx, dweight."""
    axes, column = (0, 2, 3), (1, -1, 1, 1)
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    with np.errstate(divide="ignore"):
        inv_std = np.where(var + eps == 0, 0.0, 1 / np.sqrt(var + eps))
    xhat = (x - mean) * inv_std
    y = xhat * weight.reshape(column) + bias.reshape(column)
    mean_g, product = dy.mean(axes, keepdims=True), (dy * xhat).mean(axes, keepdims=True)
    dx = weight.reshape(column) * inv_std * (dy - mean_g - xhat * product)
    return y, x.var(axes, ddof=1), dx, (dy * xhat).sum(axes)


def answers_fastbn(x, weight, bias, dy, eps):
    mean, var = np.zeros((2, x.shape[1]), np.float32)
    y, saved = F.batch_norm_forward(x, weight, bias, running_mean=mean, running_var=var, momentum=1.0, eps=eps)
    dx, dweight, _, _ = F.batch_norm_backward(dy, saved)
    return y, var, dx, dweight


def answers_torch(x, weight, bias, dy, eps):
    import torch

    x, weight, bias, dy = (torch.from_numpy(np.asarray(array)) for array in (x, weight, bias, dy))
    x.requires_grad_()
    weight.requires_grad_()
    mean, var = torch.zeros(2, x.shape[1])
    y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    y.backward(dy)
    return y.detach().numpy(), var.numpy(), x.grad.numpy(), weight.grad.numpy()


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference relative to the largest right value, or by itself where that is 0; infinite for a NaN."""
    scale = np.abs(wanted).max()
    with np.errstate(all="ignore"):
        worst = np.abs(got - wanted).max() / (scale if scale > 0 else 1.0)
    return float(worst) if np.isfinite(worst) else np.inf


def measure(
    case: str, order: Callable[[np.ndarray], np.ndarray], answers: Callable[..., tuple[np.ndarray, ...]]
) -> list[float]:
    """Errors in ``COLUMNS``; NaN for what float32 cannot hold in full precision."""
    rng = np.random.default_rng(0)
    make, eps = CASES[case]
    x = order(make(rng).astype(np.float32))
    weight, bias = rng.uniform(0.5, 1.5, (2, x.shape[1])).astype(np.float32)
    dy = order(rng.standard_normal(x.shape).astype(np.float32))
    wanted = answers_float64(x, weight, bias, dy, eps)
    got = answers(x.copy(order="K"), weight.copy(), bias.copy(), dy.copy(order="K"), eps)
    held = (not np.any(right) or 1e-37 < np.abs(right).max() < 3e38 for right in wanted)
    return [error(*pair) if fits else np.nan for fits, *pair in zip(held, got, wanted, strict=True)]


def main() -> None:
    names = [f"{column}: {who}" for column in COLUMNS for who in ("fastbn", "PyTorch")]
    print("|", " | ".join(["x", *names]), "|")
    print("|---" * (len(names) + 1) + "|")
    for case in CASES:
        runs = {
            answers: np.max([measure(case, order, answers) for order in (np.ascontiguousarray, channels_last)], axis=0)
            for answers in (answers_fastbn, answers_torch)
        }
        worst = np.stack(list(runs.values()), axis=1).reshape(-1)
        cells = ["-" if np.isnan(value) else f"{value:.1e}" for value in worst]
        print("|", " | ".join([case, *cells]), "|")


if __name__ == "__main__":
    main()
