"""``python -m bench.norms``: a training step of every norm on one input beside PyTorch's, as a Markdown table.

A step is forward and backward of the layer alone, in training mode. Least and median milliseconds, all layers in
turn, in another order every round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from fastbn import nn
from fastbn._threads import get_num_threads, set_num_threads

ROUNDS = 100
GROUPS = 32
Step = Callable[[], object]


def fastbn_layers(channels: int, size: int) -> dict[str, nn.Module]:
    """Every layer that normalises (N, channels, size, size)."""
    return {
        "BatchNorm2d": nn.BatchNorm2d(channels),
        "BatchRenorm2d": nn.BatchRenorm2d(channels),
        "GhostBatchNorm2d(16)": nn.GhostBatchNorm2d(channels, virtual_batch_size=16),
        "FrozenBatchNorm2d": nn.FrozenBatchNorm2d(channels),
        "GroupNorm": nn.GroupNorm(GROUPS, channels),
        "LayerNorm": nn.LayerNorm((channels, size, size)),
        "RMSNorm": nn.RMSNorm((channels, size, size)),
        "InstanceNorm2d": nn.InstanceNorm2d(channels, affine=True),
    }


def fastbn_step(layer: nn.Module, x: np.ndarray, dy: np.ndarray) -> Step:
    def step() -> None:
        layer(x)
        layer.backward(dy)

    return step


def torch_steps(x: np.ndarray, dy: np.ndarray) -> dict[str, Step]:
    """The same by name, where PyTorch is installed and has the layer."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(get_num_threads())
    channels, size = x.shape[1:3]
    layers = {
        "BatchNorm2d": torch.nn.BatchNorm2d(channels),
        "GroupNorm": torch.nn.GroupNorm(GROUPS, channels),
        "LayerNorm": torch.nn.LayerNorm((channels, size, size)),
        "RMSNorm": torch.nn.RMSNorm((channels, size, size)),
        "InstanceNorm2d": torch.nn.InstanceNorm2d(channels, affine=True),
    }
    source, gradient = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def step_of(layer: torch.nn.Module) -> Step:
        return lambda: layer(source).backward(gradient)

    return {name: step_of(layer) for name, layer in layers.items()}


def milliseconds(steps: list[Step]) -> list[list[float]]:
    """Of each, ROUNDS times, in another order every round: one finds the caches as the one before it left them."""
    times: list[list[float]] = [[] for _ in steps]
    rng = np.random.default_rng(0)
    for number in range(ROUNDS + 3):
        for index in rng.permutation(len(steps)):
            begun = time.perf_counter()
            steps[index]()
            if number >= 3:
                times[index].append(1e3 * (time.perf_counter() - begun))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.norms", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(32, 256, 28, 28), metavar=("N", "C", "H", "W"))
    parser.add_argument("--threads", type=int, default=get_num_threads(), help="of fastbn and PyTorch")
    options = parser.parse_args()
    set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(options.shape, np.float32) for _ in range(2))
    ours = {name: fastbn_step(layer, x, dy) for name, layer in fastbn_layers(*options.shape[1:3]).items()}
    theirs = torch_steps(x, dy)
    found = milliseconds([*ours.values(), *theirs.values()])
    times = dict(zip(ours, found, strict=False))
    rivals = dict(zip(theirs, found[len(ours) :], strict=True))
    batch = statistics.median(times["BatchNorm2d"])
    print(f"| {' x '.join(map(str, options.shape))} | least | median | over batch norm | PyTorch | times faster |")
    print("|---|---|---|---|---|---|")
    for name, own in times.items():
        middle = statistics.median(own)
        rival = statistics.median(rivals[name]) if name in rivals else None
        beside = "- | -" if rival is None else f"{rival:.3g} | {rival / middle:.2f}"
        print(f"| {name} | {min(own):.3g} | {middle:.3g} | {middle / batch:.2f} | {beside} |")


if __name__ == "__main__":
    main()
