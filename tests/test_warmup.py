"""Kernels ahead of the first call: nothing that the caller owns is changed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import models, nn
from fastbn.errors import ShapeError


def small(rng):
    """A model in the middle of a run: odd statistics, gradients, modes, a frozen layer, something kept."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2, momentum=None),
        nn.Residual(nn.BatchNorm2d(2, frozen=True), nn.Sigmoid(), activation=nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 3),
    )
    x = rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    model.backward(np.ones_like(model(x)))
    model(x)
    model[1].eval()
    return model


def everything(model):
    return (
        {name: array.copy() for name, array in model.state_dict().items()},
        [parameter.grad for parameter in model.parameters()],
        [(module.training, module._saved) for module in model.modules()],
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", ["none", "model", "batch of one", "batch of three"])
def test_the_model_is_left_bit_for_bit(arguments, training, rng):
    model = small(rng)
    state, gradients, modes = everything(model)
    shape = {"batch of one": (1, 1, 8, 8), "batch of three": (3, 1, 8, 8)}.get(arguments)
    fastbn.warmup(*[] if arguments == "none" else [model], *[shape] if shape else [], training=training)
    after, gradients_after, modes_after = everything(model)
    for name, array in state.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert all(a is b for a, b in zip(gradients_after, gradients, strict=True))
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(modes_after, modes, strict=True))


def test_a_float64_model_is_warmed_in_float64(rng):
    seen = []

    class Probe(nn.Identity):
        def forward(self, x):
            seen.append((x.dtype, x.shape))
            return x

    fastbn.warmup(nn.Sequential(nn.Linear(3, 2).double(), Probe()), (1, 3))
    assert seen == [(np.float64, (2, 2))] * 2


def test_initial_values_drawn_afterwards_are_the_same():
    fastbn.manual_seed(0)
    want = nn.Linear(3, 3).weight.data
    fastbn.manual_seed(0)
    fastbn.warmup()
    np.testing.assert_array_equal(nn.Linear(3, 3).weight.data, want)


def test_a_shape_that_the_model_refuses():
    with pytest.raises(ShapeError, match="conv2d: weight must have shape"):
        fastbn.warmup(models.lenet(), (1, 3, 28, 28))


AFTER_WARMUP = """
import numpy as np
import fastbn
from fastbn import kernels
from fastbn.kernels._jit import Kernel
fastbn.warmup()
modules = [module for module in vars(kernels).values() if hasattr(module, "__file__")]
kernels = {f"{m.__name__}.{n}": k for m in modules for n, k in vars(m).items() if isinstance(k, Kernel)}
assert len(kernels) > 15
print(*[name for name, k in kernels.items() if not (k.serial.signatures and k.parallel.signatures)])
"""


def test_every_kernel_is_ready_afterwards():
    """In a process of its own: here, other tests have compiled."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastbn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", AFTER_WARMUP], capture_output=True, text=True, check=True, env=environment
    )
    # Of units, and of channels-last images: compiled for a model only.
    units = ["batch_norm_partials.products_matrix"]
    units += ["conv_point.correlate_points", "conv_point_backward.gradients_points"]
    units += ["conv_point_weights.split_weights", "conv_point_weights.add_rows", "conv_point_weights.turn_matrix"]
    units += ["conv_strided.visit_pixels", "conv_strided.spread_pixels"]
    units += ["conv_patches.correlate_patches", "conv_patches.correlate_weights_patches"]
    units += ["winograd_panels.transform_panels", "winograd_panels.gather_panels", "conv_winograd.correlate_winograd"]
    units += [f"conv_winograd_weights.correlate_weights_{runs}" for runs in ("apart", "together")]
    units += ["conv_bn_lanes.forward_unit_lanes", "conv_bn_lanes_backward.backward_unit_lanes"]
    units += ["gram.fold_rows", "gram.gradient_rows"]
    units += ["linear_bn.forward_linear_bn", "linear_bn.backward_linear_bn"]
    assert sorted(done.stdout.split()) == sorted(f"fastbn.kernels.{name}" for name in units)
