"""``python -m bench.where -o where.png``: where a block's training step goes, its layers apart and as one unit.

Every kernel is timed as it runs; what is left of the step is Python and memory. Batch 16, the blocks of ``test_block``.
"""

import argparse
import importlib
import pkgutil
import time
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import fastbn.kernels
from bench.test_block import BATCH, CASES, limit, ours
from bench.test_conv import in_order
from fastbn.kernels._jit import Kernel

ROLES = {
    "convolution, gradient to x": (
        "correlate",
        "correlate_blocks",
        "correlate_depthwise",
        "correlate_points",
        "correlate_winograd",
        "split_planes",
    ),
    "gradient to the weights": (
        "correlate_weights",
        "correlate_weights_blocks",
        "correlate_weights_apart",
        "correlate_weights_together",
    ),
    "both gradients at once": ("gradients_points", "gradients_depthwise"),
    "weights packed": (
        "pack_panels",
        "split_weights",
        "add_panels",
        "add_rows",
        "transform_panels",
        "gather_panels",
    ),
    "batch norm": ("forward_matrix", "normalize_matrix", "backward_matrix", "products_matrix"),
    "ReLU": ("relu", "relu_backward"),
    "Python, memory": (),
}
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#999999", "#d55e00", "#f0e442", "#dddddd")
VERSIONS = {"apart": "fastbn apart", "one unit": "fastbn"}
ROUNDS = 9


def timed_kernels(spent: dict[str, float]) -> None:
    """Let every kernel add its milliseconds to ``spent``."""

    def timed(name, run):
        def call(*operands):
            begun = time.perf_counter()
            result = run(*operands)
            spent[name] += 1e3 * (time.perf_counter() - begun)
            return result

        return call

    for found in pkgutil.iter_modules(fastbn.kernels.__path__):
        for name, kernel in vars(importlib.import_module(f"fastbn.kernels.{found.name}")).items():
            if isinstance(kernel, Kernel):
                kernel.parallel, kernel.serial = timed(name, kernel.parallel), timed(name, kernel.serial)


def shares(case: str, version: str, spent: dict[str, float]) -> dict[str, float]:
    """Milliseconds of each role in the median step."""
    channels, channels_out, size, *_ = CASES[case]
    rng = np.random.default_rng(0)
    x = in_order(rng.standard_normal((BATCH, channels, size, size), np.float32), True)
    dy = in_order(rng.standard_normal((BATCH, channels_out, size, size), np.float32), True)
    step = ours(case, VERSIONS[version], x, dy)
    steps = []
    for _ in range(3 + ROUNDS):
        spent.clear()
        begun = time.perf_counter()
        step()
        steps.append((1e3 * (time.perf_counter() - begun), dict(spent)))
    whole, kernels = sorted(steps[3:], key=lambda item: item[0])[ROUNDS // 2]
    roles = {role: sum(kernels.get(name, 0.0) for name in names) for role, names in ROLES.items()}
    roles["Python, memory"] = whole - sum(kernels.values())
    roles["batch norm"] += whole - sum(roles.values())
    return roles


def draw(found: dict[tuple[str, str], dict[str, float]], limits: dict[str, float], path: Path) -> None:
    figure, axes = plt.subplots(len(CASES), 1, figsize=(10, 10), layout="constrained")
    for axis, case in zip(axes, CASES, strict=True):
        for position, version in enumerate(VERSIONS):
            left = 0.0
            for (role, value), colour in zip(found[case, version].items(), COLOURS, strict=True):
                axis.barh(position, value, left=left, color=colour, label=role if not position else None)
                left += value
            axis.text(left, position, f" {left:.1f} ms", va="center")
        axis.axvline(limits[case], color="black", linestyle="--", label="limit: arithmetic and x, y, dx, dy once")
        axis.set_yticks(range(len(VERSIONS)), list(VERSIONS))
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(case, loc="left", fontsize=10)
    axes[-1].set_xlabel("milliseconds of a training step, batch 16")
    figure.suptitle("Convolution, batch norm and ReLU: three layers, and one unit")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("where.png"))
    options = parser.parse_args()
    spent: dict[str, float] = defaultdict(float)
    limits = {case: 1e3 * limit(case) for case in CASES}
    timed_kernels(spent)
    found = {(case, version): shares(case, version, spent) for case in CASES for version in VERSIONS}
    for (case, version), roles in found.items():
        parts = ", ".join(f"{role} {value:.1f}" for role, value in roles.items())
        print(f"{case:24} {version:9} {sum(roles.values()):6.1f} ms: {parts}; limit {limits[case]:.1f}")
    draw(found, limits, options.output)
    print("written", options.output)


if __name__ == "__main__":
    main()
