"""``python -m bench.optimisers``: steps of SGD with momentum and of Adam over whole networks, beside PyTorch's.

The same parameters and gradients; answers checked. The rivals take turns, some steps each; the least time counts.
Bytes: each array that a step reads or writes, once; beside the best copy so far, which is slower where all the arrays
fit into a cache.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import fastbn
from bench.roof import bandwidth
from fastbn import models, optim
from fastbn.nn.parameter import Parameter

NETWORKS = {"LeNet": models.lenet, "MobileNetV2": models.mobilenet_v2, "ResNet-18": models.resnet18}
# Options; arrays that a step touches: weights, gradient and moments read, all but the gradient written.
OPTIMISERS = {"SGD": ({"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}, 5), "Adam": ({"lr": 1e-3}, 7)}
RIVALS = {"PyTorch fused": {"fused": True}, "PyTorch foreach": {"foreach": True}, "PyTorch": {"foreach": False}}

Step = Callable[[], None]


def build(network: str, kind: str) -> tuple[dict[str, Step], list[list[np.ndarray]], int]:
    """A step of each rival, the arrays that it changes, and how many elements they have."""
    fastbn.manual_seed(0)
    rng, options = np.random.default_rng(0), OPTIMISERS[kind][0]
    weights = [parameter.data for parameter in NETWORKS[network]().parameters()]
    gradients = [rng.standard_normal(array.shape, np.float32) for array in weights]
    ours = [Parameter(array.copy()) for array in weights]
    for parameter, grad in zip(ours, gradients, strict=True):
        parameter.grad = grad
    steps: dict[str, Step] = {"fastbn": getattr(optim, kind)(ours, **options).step}
    changed = [[parameter.data for parameter in ours]]
    for rival, how in RIVALS.items():
        theirs = [torch.nn.Parameter(torch.tensor(array)) for array in weights]
        for parameter, grad in zip(theirs, gradients, strict=True):
            parameter.grad = torch.from_numpy(grad)
        steps[rival] = getattr(torch.optim, kind)(theirs, **options, **how).step
        changed.append([parameter.detach().numpy() for parameter in theirs])
    return steps, changed, sum(array.size for array in weights)


def times(network: str, kind: str, rounds: int) -> tuple[dict[str, float], int]:
    """The least seconds of a step of each, and the elements of the network."""
    steps, changed, size = build(network, kind)
    for step in steps.values():
        step()
    for rival, arrays in zip(steps, changed, strict=True):
        for got, want in zip(arrays, changed[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=rival)
    spent = dict.fromkeys(steps, np.inf)
    for _ in range(rounds):
        for rival, step in steps.items():
            for _ in range(5):
                begun = time.perf_counter()
                step()
                spent[rival] = min(spent[rival], time.perf_counter() - begun)
    return spent, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(fastbn.get_num_threads())
    roof = 0.0
    print(f"{fastbn.get_num_threads()} threads, least milliseconds of a step")
    for network in options.networks:
        for kind, (_, arrays) in OPTIMISERS.items():
            spent, size = times(network, kind, options.rounds)
            roof = max(roof, bandwidth())
            best = min(value for rival, value in spent.items() if rival != "fastbn")
            figures = "   ".join(f"{rival} {1e3 * value:.3f}" for rival, value in spent.items())
            rate = 4 * arrays * size / spent["fastbn"]
            print(
                f"{network:12} {kind:5} {figures}   {best / spent['fastbn']:.2f} x PyTorch's best, "
                f"{rate / 1e9:.1f} GB/s where a copy moves {roof / 1e9:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
