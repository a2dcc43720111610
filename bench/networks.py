"""``python -m bench.networks``: training steps of whole networks beside PyTorch's, batch 16, 3 x 96 x 96; and memory.

The same weights, inputs and gradients; answers checked. A step is forward, backward and no optimiser. Each network has
a process of its own, in which the libraries take turns, some steps each: where memory comes from depends on what was
computed before. Memory: of a process of its own for each library, too, by what it may claim at most (VmHWM) beyond what
it held before the step; fastbn keeps no idle memory there.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time

import numpy as np
import torch

import fastbn
from bench.torch_models import MODELS
from fastbn import models

OURS = {"ResNet-18": models.resnet18, "ResNet-50": models.resnet50, "MobileNetV2": models.mobilenet_v2}
THEIRS = ("PyTorch", "PyTorch channels-last")
RIVALS = ("fastbn", "fastbn replayed", "fastbn unfused", *THEIRS)
SHAPE = (16, 3, 96, 96)
REPLAYED = 5  # steps, until they are replayed


def build(network: str, rival: str):
    """(forward, step, forget) on fixed data; a step returns the output and the first convolution's gradient.

    forget: what is kept from step to step.
    """
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal(SHAPE, np.float32), rng.standard_normal((SHAPE[0], 1000), np.float32)
    fastbn.manual_seed(0)
    model = OURS[network]()
    for module in model.modules():
        if isinstance(module, fastbn.nn.Dropout):
            module.p = 0.0
    if rival.startswith("fastbn"):
        fastbn.fuse(model, rival != "fastbn unfused", replay=rival == "fastbn replayed")
        first = next(model.parameters())

        def forward():
            return model(x)

        def step():
            model.zero_grad()
            y = forward()
            model.backward(dy, need_dx=False)
            return y, first.grad

        return forward, step, lambda: model.eval().train()
    net = MODELS[network]()
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()})
    order = torch.channels_last if rival.endswith("last") else torch.contiguous_format
    net, tx, tdy = net.to(memory_format=order), torch.from_numpy(x).to(memory_format=order), torch.from_numpy(dy)
    first_weight = next(net.parameters())

    def their_forward():
        return net(tx)

    def their_step():
        net.zero_grad()
        y = their_forward()
        y.backward(tdy)
        return y.detach().numpy(), first_weight.grad.numpy()

    return their_forward, their_step, net.train


def times(network: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of steps, ``rounds`` turns of three steps each."""
    steps = {rival: build(network, rival)[1] for rival in RIVALS}
    want = None
    for rival, step in steps.items():
        found = [array.astype(np.float64).ravel() for array in step()]
        want = want or found
        for got, right in zip(found, want, strict=True):
            # float32 through fifty layers of batch norm and ReLU: the same direction, not the same digits.
            likeness = got @ right / np.sqrt((got @ got) * (right @ right))
            if not likeness > 0.99:
                raise SystemExit(f"bench.networks: {rival} must give {network}'s answers, got likeness {likeness:.3f}")
    spent: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    for _ in range(rounds):
        for rival, step in steps.items():
            for _ in range(REPLAYED if not spent[rival] else 1):
                step()
            for _ in range(3):
                begun = time.perf_counter()
                step()
                spent[rival].append(1e3 * (time.perf_counter() - begun))
    return spent


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def memory(network: str, rival: str) -> dict[str, int]:
    """Bytes, in this process: held after a forward pass in training mode, and the most that a step claims."""
    torch.set_num_threads(fastbn.get_num_threads())
    fastbn.set_cache_limit(0)
    forward, step, forget = build(network, rival)
    step()  # kernels are compiled, gradients are there
    forget()
    before = _resident()
    for _ in range(REPLAYED):
        step()
    _resident()  # what is free is not part of the most
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM anew
    kept = forward()
    held = _resident() - before
    del kept
    if rival != "fastbn replayed":  # whose memory is held from step to step
        forget()
    step()
    return {"held": held, "peak": _status("VmHWM") - before}


def _resident() -> int:
    """Resident bytes, less what the C library holds of freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _apart(network: str, *options: str):
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.networks", network, *options], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(OURS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", metavar="RIVAL", help=argparse.SUPPRESS)
    parser.add_argument("--times", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.networks = options.networks or list(OURS)
    for name in options.networks:
        if name not in OURS:
            parser.error(f"NETWORK must be one of {', '.join(OURS)}, got {name!r}")
    if options.memory:
        print(json.dumps(memory(options.networks[0], options.memory)))
        return
    if options.times:
        torch.set_num_threads(fastbn.get_num_threads())
        print(json.dumps(times(options.networks[0], options.rounds)))
        return
    print(f"batch {SHAPE[0]}, 3 x 96 x 96, {fastbn.get_num_threads()} threads; median (minimum) milliseconds of a step")
    for network in options.networks:
        spent = _apart(network, "--times", "--rounds", str(options.rounds))
        best = min(np.median(spent[rival]) for rival in THEIRS)
        for rival in RIVALS:
            median, least = np.median(spent[rival]), min(spent[rival])
            found = _apart(network, "--memory", rival)
            held, peak = found["held"] / 1e6, found["peak"] / 1e6
            print(
                f"{network:12} {rival:22} {median:6.0f} ({least:.0f})   {best / median:5.2f} x PyTorch's best   "
                f"held after forward {held:5.0f} MB, peak {peak:5.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
