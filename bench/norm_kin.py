"""``python -m bench.norm_kin``: what batch norm's kin cost beside batch norm, as a Markdown table.

Least milliseconds of training forward and backward with the output reused, all rivals in turn, round after round; in
parentheses over batch norm's. ``--threads 1`` on a machine that has other work to do.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import fastbn.functional as F
from bench.operands import Operands, operands
from fastbn._threads import get_num_threads, set_num_threads

SHAPES = [(32, 64, 28, 28), (32, 256, 14, 14), (32, 256, 200), (256, 1024)]
ROUNDS = 150
KEPT = 0.7  # of the positions of a mask, the rest being padding at the end
GHOST = 16  # samples
Pair = tuple[Callable[[], object], Callable[[], object]]


def fastbn_calls(o: Operands) -> dict[str, Pair]:
    """Forward and backward by name, statistics moving."""
    out, dx = np.empty_like(o.x), np.empty_like(o.x)
    mask = np.zeros((o.x.shape[0], *o.x.shape[2:]), bool)
    mask[..., : int(KEPT * mask.shape[-1])] = True
    affine = o.weight, o.bias
    given = {"running_mean": o.mean, "running_var": o.var, "out": out}
    saved = {
        "batch norm": F.batch_norm_forward(o.x, *affine, **given)[1],
        "batch renorm": F.batch_renorm_forward(o.x, *affine, **given)[1],
        "frozen": F.batch_norm_forward(o.x, *affine, **given, training=False)[1],
    }
    ghost = F.ghost_batch_norm_forward(o.x, GHOST, *affine, **given)[1]
    masked = F.masked_batch_norm_forward(o.x, mask, *affine, **given)[1]

    def backward(name: str) -> Callable[[], object]:
        return lambda: F.batch_norm_backward(o.dy, saved[name], out=dx, dx_only=name == "frozen")

    return {
        "batch norm": (lambda: F.batch_norm_forward(o.x, *affine, **given), backward("batch norm")),
        "batch renorm": (lambda: F.batch_renorm_forward(o.x, *affine, **given), backward("batch renorm")),
        f"ghost, {GHOST}": (
            lambda: F.ghost_batch_norm_forward(o.x, GHOST, *affine, **given),
            lambda: F.ghost_batch_norm_backward(o.dy, ghost, out=dx),
        ),
        f"masked, {KEPT:.0%} kept": (
            lambda: F.masked_batch_norm_forward(o.x, mask, *affine, **given),
            lambda: F.masked_batch_norm_backward(o.dy, masked, out=dx),
        ),
        "frozen": (lambda: F.batch_norm_forward(o.x, *affine, **given, training=False), backward("frozen")),
    }


def torch_calls(o: Operands) -> dict[str, Pair]:
    """PyTorch's batch norm, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(get_num_threads())
    x, dy, _, weight, bias, mean, var = (torch.from_numpy(array.copy()) for array in vars(o).values())
    native, gradient = torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    with torch.no_grad():
        out, saved_mean, saved_inv_std = native(x, weight, bias, mean, var, True, 0.1, 1e-5)
    outs = {"out": out, "save_mean": saved_mean, "save_invstd": saved_inv_std}
    wanted = [True, True, True]
    return {
        "PyTorch batch norm": (
            lambda: native.out(x, weight, bias, mean, var, True, 0.1, 1e-5, **outs),
            lambda: gradient(dy, x, weight, mean, var, saved_mean, saved_inv_std, True, 1e-5, wanted),
        )
    }


def least(calls: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of each, the least of ROUNDS in turn."""
    best = [np.inf] * len(calls)
    for call in calls:
        call()
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            best[i] = min(best[i], 1e3 * (time.perf_counter() - begun))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.norm_kin", description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=get_num_threads(), help="of fastbn and PyTorch")
    set_num_threads(parser.parse_args().threads)
    for number, direction in enumerate(("forward", "backward")):
        for row, shape in enumerate(SHAPES):
            o = operands(shape, channels_last=False)
            calls = {**fastbn_calls(o), **torch_calls(o)}
            times = least([pair[number] for pair in calls.values()])
            if row == 0:
                print(f"| {direction} | {' | '.join(calls)} |\n|{'---|' * (len(calls) + 1)}")
            cells = " | ".join(f"{value:.3g} ({value / times[0]:.2f})" for value in times)
            print(f"| {' x '.join(map(str, shape))} | {cells} |", flush=True)
        print()


if __name__ == "__main__":
    main()
