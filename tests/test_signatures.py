"""What Numba compiles: one version of a kernel for each dtype however arrays lie, and vectors as wide as the host's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite.binding import get_host_cpu_features
from numba.core.errors import TypingError

from fastbn.kernels import _simd, _simd_lanes
from fastbn.kernels._jit import driver
from fastbn.kernels._matrix_unit import matrix_unit

TESTS = Path(__file__).parent

# The types of the arguments that kernels are called with: Numba would compile a version for each.
SIGNATURES = """
import importlib, json, pkgutil
from collections import defaultdict
import numba
import numpy as np
import fastbn.kernels
from fastbn.kernels._jit import Kernel

versions = defaultdict(set)

def version(kernel):
    def call(*arguments):
        versions[kernel].add(tuple(map(numba.typeof, arguments[:-1])))
        return -1  # no channel was refused
    return call

Kernel.serial = Kernel.parallel = property(version)
np.empty = np.zeros  # what no kernel has written is looked at

def signatures():
    counts = {}
    for found in pkgutil.iter_modules(fastbn.kernels.__path__):
        module = importlib.import_module(f"fastbn.kernels.{found.name}")
        for name, kernel in vars(module).items():
            if isinstance(kernel, Kernel):
                counts[f"{found.name}.{name}"] = len(versions[kernel])
    return counts

"""

# Kernels of units, and of convolutions of channels-last images; without the matrix unit.
UNITS = {
    "batch_norm_partials.products_matrix": 1,
    "conv_point.correlate_points": 3,  # moments; Gram folding's output and gradient
    "conv_point_backward.gradients_points": 3,  # the gradient of a batch norm; Gram folding's square and gradients
    "conv_point_weights.split_weights": 0,
    "conv_point_weights.add_rows": 0,
    "conv_point_weights.turn_matrix": 0,
    "conv_patches.correlate_patches": 1,
    "conv_patches.correlate_weights_patches": 1,
    "conv_winograd.correlate_winograd": 2,  # moments; the gradient of a batch norm
    "conv_winograd_weights.correlate_weights_apart": 1,
    "conv_winograd_weights.correlate_weights_together": 1,
    "conv_strided.spread_pixels": 1,
    "conv_strided.visit_pixels": 1,
    "gram.fold_rows": 1,
    "gram.gradient_rows": 1,
    "winograd_panels.transform_panels": 1,
    "winograd_panels.gather_panels": 1,
    "conv_bn_lanes.forward_unit_lanes": 1,
    "conv_bn_lanes_backward.backward_unit_lanes": 1,
    "linear_bn.forward_linear_bn": 1,
    "linear_bn.backward_linear_bn": 1,
}
UNIT_CALLS = """
import sys
import numpy as np
sys.path.insert(0, "tests")
from layouts import LAYOUTS
from fastbn.functional.conv_bn import conv_bn_backward, conv_bn_forward
from fastbn.functional import conv_bn_lanes, linear_bn

rng = np.random.default_rng(0)
few, wide, larger = (rng.random(shape, np.float32) for shape in ((32, 3, 6, 4), (32, 64, 6, 4), (4, 64, 48, 32)))
small = wide[:, :32]
for lie in (LAYOUTS[name] for name in LAYOUTS if name != "big_endian"):
    whole = (small, 32, 1, 1), (few, 32, 3, 1), (wide, 64, 3, 1), (larger, 64, 3, 1)
    for x, outputs, kernel, stride in *whole, (wide, 64, 1, 2):
        weight = np.ones((outputs, x.shape[1], kernel, kernel), x.dtype)
        running = {"running_mean": np.zeros(outputs, x.dtype), "running_var": np.ones(outputs, x.dtype)}
        y, saved = conv_bn_forward(lie(x), weight, None, stride, kernel // 2, relu=True, gram=False, **running)
        conv_bn_backward(lie(y), saved, need_dx=x.shape[1] > 3)
    y, saved = conv_bn_forward(lie(small), np.ones((64, 32, 1, 1), few.dtype), None, gram=True)
    conv_bn_backward(lie(y), saved)
    statistics = np.zeros(3, few.dtype), np.ones(3, few.dtype), 0.1, 1e-5
    weight = np.ones((3, 3, 2, 2), few.dtype)
    image = np.ascontiguousarray(lie(few))
    unit = conv_bn_lanes.unit_forward(image, weight, None, 1, 0, 1, 1, None, None, statistics, True)
    conv_bn_lanes.unit_backward(lie(unit[0]), unit[1])
    matrix = few[:, :, 0, 0]
    unit = linear_bn.unit_forward(lie(matrix), weight[:, :, 0, 0], None, None, None, statistics, True)
    linear_bn.unit_backward(lie(unit[0]), unit[1], need_dx=False)
print(json.dumps(signatures()))
"""

CALLS = """
import sys
import numpy as np
sys.path.insert(0, "tests")
import fastbn, fastbn.kernels, fastbn.functional as F
from fastbn import nn, optim
from helpers import ORDERS
from layouts import LAYOUTS
from fastbn.functional.conv_bn import conv_bn_backward, conv_bn_forward
from fastbn.functional.samples import samples

def doors(image, matrix, relu, groups, count_include_pad):
    n, c = image.shape[:2]
    weight, vector = np.ones((4, c // 2, 2, 2), image.dtype), np.ones(c, image.dtype)
    short = np.concatenate([image, image])[:, :, :3, :2]
    tall = np.concatenate([image] * 3)  # channels-last: more rows than tasks own
    large = rng.random((1, 6, 72, 77)).astype(image.dtype)  # too few channels for eight threads
    for x in image, matrix, short, tall, large:
        for residual in None, x:
            for training in True, False:
                mean, var = np.zeros(x.shape[1], x.dtype), np.ones(x.shape[1], x.dtype)
                options = {"running_mean": mean, "running_var": var, "training": training}
                y, saved = F.batch_norm_forward(x, residual=residual, relu=relu, **options)
                F.batch_norm_backward(x, saved)
        F.batch_renorm(x, mean, var, training=True, relu=relu)
    for x in image, matrix:
        y, saved = F.masked_batch_norm_forward(x, np.ones((len(x), *x.shape[2:]), bool))
        F.masked_batch_norm_backward(x, saved)
    for bias in None, vector:
        F.rms_norm_backward(image, F.rms_norm_forward(image, image.shape[-1])[1])
        for size, norm, backward in (
            (image.shape[-1], F.layer_norm_forward, F.layer_norm_backward),
            (c, F.group_norm_forward, F.group_norm_backward),
            (2, F.group_norm_forward, F.group_norm_backward),
        ):
            y, saved = norm(image, size, bias if size == c else None)
            backward(image, saved)
    for bias in None, np.ones(4, image.dtype):
        y = F.conv2d(image, weight, bias, groups=groups, relu=relu)
        F.conv2d(image, weight, bias, groups=groups, relu=relu, residual=y)
    F.conv2d_backward(y, image, weight, groups=groups)
    batch = np.repeat(image, 8, axis=0)
    for bias in None, np.ones(4, image.dtype):
        y = F.conv2d(batch, weight, bias, groups=groups, relu=relu)
        F.conv2d(batch, weight, bias, groups=groups, relu=relu, residual=y)
    F.conv2d_backward(y, batch, weight, groups=groups)
    many, square = np.repeat(image, 8, axis=1)[:, :32], np.ones((32, 32 // groups, 2, 2), image.dtype)
    for bias in None, np.ones(32, image.dtype):
        y = F.conv2d(many, square, bias, groups=groups, relu=relu)
        F.conv2d(many, square, bias, groups=groups, relu=relu, residual=y)
    F.conv2d_backward(y, many, square, groups=groups)
    each = np.ones((32, 1, 2, 2), image.dtype)
    F.conv2d_backward(F.conv2d(many, each, groups=32, relu=relu), many, each, groups=32)
    whole = np.repeat(square, groups, axis=1)
    running = {"running_mean": np.zeros(32, image.dtype), "running_var": np.ones(32, image.dtype)}
    conv_bn_backward(*conv_bn_forward(many, whole, relu=bool(relu), **running))
    for bias in None, np.ones(5, matrix.dtype):
        y = F.linear(matrix, np.ones((5, matrix.shape[1]), matrix.dtype), bias, relu=relu)
    F.linear_backward(y, matrix, np.ones((5, matrix.shape[1]), matrix.dtype))
    F.linear(*np.ones((2, 600, 600), matrix.dtype))
    F.linear_backward(*np.ones((2, 3, 800), matrix.dtype), np.ones((800, 800), matrix.dtype))
    F.weight_norm_backward(F.weight_norm(matrix, matrix[:, :1]), matrix, matrix[:, :1])
    F.weight_norm(image, image[:1, :, :1, :1], 1)
    y, indices = F.max_pool2d_forward(image, 2)
    F.max_pool2d_backward(y, indices, image.shape)
    F.avg_pool2d_backward(F.avg_pool2d(image, 2, count_include_pad=count_include_pad), image, 2)
    for x in image, matrix:
        F.relu_backward(x, F.relu(x))
        F.relu6_backward(x, F.relu6(x))
        F.sigmoid_backward(x, F.sigmoid(x))
    parameter = nn.Parameter(np.ones_like(matrix))
    for kind in optim.SGD, optim.RMSprop, optim.Adam:
        parameter.grad = matrix
        kind([parameter]).step()
    parameter.grad = matrix.copy()
    optim.clip_grad_norm_(parameter, 0)
    targets = np.zeros(len(matrix), np.int32)
    F.cross_entropy_backward(matrix, targets, F.cross_entropy_forward(matrix, targets)[1])
    samples(np.ascontiguousarray(matrix), targets)

rng = np.random.default_rng(0)
shapes = (4, 6, 6, 4), (5, 3)
arrays = {dtype: [rng.random(shape).astype(dtype) for shape in shapes] for dtype in (np.float32, np.float64)}
for dtype in np.float32, np.float64:
    image, matrix = arrays[dtype]
    for lie in [*ORDERS.values(), *(LAYOUTS[name] for name in LAYOUTS if name != "big_endian")]:
        lie_matrix = LAYOUTS.get(lie.__name__.removesuffix("_channels_last"), np.ascontiguousarray)
        doors(lie(image), lie_matrix(matrix), True, 2, True)
after_layouts = signatures()
doors(*arrays[np.float32], 1, np.int32(2), 0)
doors(*arrays[np.float32], np.True_, np.int64(2), np.False_)
print(json.dumps([after_layouts, signatures()]))
"""


@pytest.fixture(scope="module")
def counts():
    return answer(SIGNATURES + CALLS)


def printed(script, timeout, **options):
    """What a script prints that is told not to use the matrix unit, unless ``options`` of its environment allow it."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TESTS.parent, timeout=timeout, capture_output=True, text=True,
        env={**os.environ, "FASTBN_AMX": "0", **options}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(script, **options):
    return json.loads(printed(script, 400, **options))


def test_one_version_of_what_units_need():
    found = answer(SIGNATURES + UNIT_CALLS)
    assert {name: found[name] for name in UNITS} == UNITS


@pytest.mark.skipif(not matrix_unit(), reason="no matrix unit, or FASTBN_AMX is 0")
def test_versions_for_the_matrix_unit():
    found = answer(SIGNATURES + UNIT_CALLS, FASTBN_AMX="1")
    assert found["conv_point_weights.split_weights"] == 1
    assert found["conv_point_weights.add_rows"] <= 1
    assert found["conv_point.correlate_points"] <= 2 * UNITS["conv_point.correlate_points"]
    assert found["conv_point_backward.gradients_points"] <= 2 * UNITS["conv_point_backward.gradients_points"] + 1


def test_one_version_for_each_dtype_in_every_layout(counts):
    assert len(counts[0]) > 20
    doors = {name: count for name, count in counts[0].items() if name not in UNITS or count}
    assert doors == {name: 2 * versions(name) for name in doors}


def versions(name):
    """What is compiled apart for operands that may be absent."""
    if name == "conv_blocks.correlate_blocks":  # bias, residual; sums of the output; the gradient of a batch norm
        return 6
    if name == "conv_blocks_weights.correlate_weights_blocks":
        return 2
    if name == "batch_norm_partials.products_matrix":
        return 1
    if name == "batch_norm_columns.normalize_columns":
        return 1
    if name == "batch_norm_rows.moments_rows":  # batch renorm
        return 2
    if name.startswith("batch_norm_") and ".forward_" in name:  # residual, batch renorm
        return 3
    return 2 if name.startswith("batch_norm") else 1  # residual


def test_no_version_for_another_kind_of_flag_or_integer(counts):
    assert counts[1] == counts[0]


def compile_anew(script, cache, **options):
    """Run a script for which no kernel is in the cache: what is cannot be inspected."""
    return printed(script, 120, NUMBA_CACHE_DIR=str(cache), **options)


def test_only_the_branch_of_one_version_is_compiled():
    @driver
    def add(x, parallel):
        if parallel:
            return x.serial
        return x + 1

    assert add.serial(1, None) == 2
    with pytest.raises(TypingError, match="serial"):
        add.parallel(1, True)


OPTIONS = """
import json
import numpy as np
from numba.core.cpu import ParallelOptions

seen, init = [], ParallelOptions.__init__

def record(self, value):
    init(self, value)
    if self.enabled:
        seen.append([name for name in self.__slots__ if getattr(self, name)])

ParallelOptions.__init__ = record
import fastbn.functional as F

size = 1 << 16
F.relu(np.zeros(size, np.float32))
F.relu(np.zeros(size, np.float64))
F.relu_backward(np.zeros(size, np.float32), np.zeros(size, np.float32))
print(json.dumps(seen))
"""


def test_only_explicit_loops_are_parallel_in_every_kernel_and_version(tmp_path):
    seen = json.loads(compile_anew(OPTIONS, tmp_path))
    assert len(seen) >= 3
    assert seen == [["enabled", "prange"]] * len(seen)


COMPILE = """
import numpy as np
import fastbn.functional as F
from fastbn.functional import conv_point
from fastbn.kernels.conv_lanes import correlate_lanes
from fastbn.kernels.conv_point import correlate_points
from fastbn.kernels.gemm import packed_gemm

F.linear(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))
F.conv2d(np.ones((32, 1, 4, 4), np.float32), np.ones((2, 1, 2, 2), np.float32))
pixels = np.ones((9, 9, 9, 16), np.float32).transpose(0, 3, 1, 2)
square = np.ones((16, 16, 1, 1), np.float32)
conv_point.forward(pixels, square, None, conv_point.POINT, 1, None, False, np.empty_like(pixels))
for kernel in packed_gemm, correlate_lanes, correlate_points:
    print(kernel.serial.inspect_asm(kernel.serial.signatures[0]), end="\f")
"""
REGISTERS = {"avx512f": "zmm", "avx2": "ymm"}


def widest_register():
    features = get_host_cpu_features()
    register = next((register for feature, register in REGISTERS.items() if features.get(feature)), None)
    if register is None:
        pytest.skip("neither AVX-512 nor AVX2")
    return register


def loops(assembly):
    return re.split(r"\n[.\w]+:", assembly)


def test_the_register_tiles_use_the_widest_vectors_and_no_stack(tmp_path):
    register = widest_register()
    multiply_adds = rf"vfn?madd\w+ps\s.*%{register}"
    tile = _simd.TILE_ROWS * _simd.TILE_VECTORS
    sizes = tile, _simd_lanes.LANE_ROWS * _simd_lanes.LANE_VECTORS, tile
    for assembly, size in zip(compile_anew(COMPILE, tmp_path).split("\f"), sizes, strict=False):
        loop = max(loops(assembly), key=lambda block: len(re.findall(multiply_adds, block)))
        assert len(re.findall(multiply_adds, loop)) >= size
        assert not re.search(rf"\(%r[sb]p\).*%{register}|%{register}.*\(%r[sb]p\)", loop)


MATRIX_UNIT = """
import numpy as np
from fastbn.functional import conv_point
from fastbn.kernels.conv_point import correlate_points

pixels = np.ones((9, 40, 40, 64), np.float32).transpose(0, 3, 1, 2)
square = np.ones((64, 64, 1, 1), np.float32)
conv_point.forward(pixels, square, None, conv_point.POINT, 1, None, False, np.empty_like(pixels))
print(correlate_points.parallel.inspect_asm(correlate_points.parallel.signatures[0]))
"""


@pytest.mark.skipif(not matrix_unit(), reason="no matrix unit, or FASTBN_AMX is 0")
def test_the_matrix_unit_multiplies(tmp_path):
    assembly = compile_anew(MATRIX_UNIT, tmp_path, FASTBN_AMX="1")
    of_a_stage = max(len(re.findall("tdpbf16ps", block)) for block in loops(assembly))
    assert of_a_stage == 4
    assert not re.search(r"vfn?madd\w+ps\s.*%zmm", assembly)


BATCH_NORM = """
import json
import numpy as np
import fastbn.functional as F
from fastbn.kernels.batch_norm_columns import backward_columns, forward_columns
from fastbn.kernels.batch_norm_matrix import backward_matrix, forward_matrix
from fastbn.kernels.batch_norm_rows import forward_rows
from fastbn.kernels.batch_norm_rows_backward import backward_rows

for shape in (2, 3, 16, 16), (8, 3, 2, 2), (300, 3):
    x = np.ones(shape, np.float32)
    F.batch_norm_backward(x, F.batch_norm_forward(x)[1])
kernels = forward_rows, forward_columns, forward_matrix, backward_rows, backward_columns, backward_matrix
print(json.dumps([kernel.serial.inspect_asm(kernel.serial.signatures[0]) for kernel in kernels]))
"""


def test_batch_norm_sums_and_maps_whole_registers_and_streams_them(tmp_path):
    register = widest_register()
    for assembly in json.loads(compile_anew(BATCH_NORM, tmp_path)):
        wide_sums = rf"vfmadd\w+pd\s.*%{register}"
        loop = max(loops(assembly), key=lambda block: len(re.findall(wide_sums, block)))
        assert len(re.findall(wide_sums, loop)) >= 2
        assert len(re.findall(rf"vcvtps2pd\s.*%{register}", loop)) >= 2
        streams = [loop for loop in loops(assembly) if re.search(rf"vmovntps\s+%{register}", loop)]
        assert any(re.search(rf"vfmadd\w+ps\s.*%{register}", loop) for loop in streams)
        assert any(re.search(rf"vmovups\s+%{register}\d+, .*\(", loop) for loop in loops(assembly))
