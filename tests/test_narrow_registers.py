"""Hosts of narrower and fewer registers, played in a process of their own: the same answers as the float64 twin's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite.binding import get_host_cpu_features

TESTS = Path(__file__).parent
# The host: what its features must not begin with, one that this machine must have for it, and bytes of a vector.
HOSTS = {"haswell": (("avx512", "amx"), "avx2", 32), "nehalem": (("avx", "amx", "fma", "f16c"), "sse4.2", 16)}
# Python runs it before anything else that it finds on its path.
SITE = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features

def fewer():
    found = features()
    found.update(dict.fromkeys((name for name in found if name.startswith({absent!r})), False))
    return found

llvmlite.binding.get_host_cpu_features = fewer
"""
SCRIPT = """
import numpy as np
import reference
from helpers import assert_close, channels_last
import fastbn.functional as F
from fastbn.functional.conv_bn import conv_bn_backward, conv_bn_forward
from fastbn.kernels._simd import VECTOR_BYTES

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
for channels, outputs, kernel, groups in (24, 40, 1, 1), (16, 24, 3, 1), (24, 24, 3, 24), (64, 64, 3, 1):
    x, weight = channels_last(draw(2, channels, 11, 9)), draw(outputs, channels // groups, kernel, kernel) / channels
    options = {"padding": kernel // 2, "groups": groups}
    y = F.conv2d(x, weight, **options)
    assert_close(y, reference.conv2d(x, weight, **options), np.float32, 10)
    dy = channels_last(draw(*y.shape))
    wanted = reference.conv2d_backward(dy, x, weight, **options)
    for got, want in zip(F.conv2d_backward(dy, x, weight, **options)[:2], wanted, strict=False):
        assert_close(got, want, np.float32, 100)
    y, saved = conv_bn_forward(x, weight, None, 1, kernel // 2, 1, groups, relu=True)
    z = reference.conv2d(x, weight, **options)
    assert_close(y, reference.batch_norm(z, relu=True)[0], np.float32, 30)
    dx, dweight, *_ = conv_bn_backward(dy, saved)
    dz = reference.batch_norm_backward(dy, z, relu=True)[0]
    for got, want in zip((dx, dweight), reference.conv2d_backward(dz, x, weight, **options), strict=False):
        assert_close(got, want, np.float32, 300)
for lay in np.ascontiguousarray, channels_last:
    x, dy, residual = (lay(draw(4, 37, 9, 8)) for _ in range(3))
    y, saved = F.batch_norm_forward(x, residual=residual, relu=True)
    assert_close(y, reference.batch_norm(x, residual=residual, relu=True)[0], np.float32)
    dx = F.batch_norm_backward(dy, saved)[0]
    assert_close(dx, reference.batch_norm_backward(dy, x, residual=residual, relu=True)[0], np.float32)
x, weight = draw(33, 70), draw(45, 70)
assert_close(F.linear(x, weight), reference.linear(x, weight), np.float32, 10)
print(VECTOR_BYTES)
"""


@pytest.mark.parametrize("host", HOSTS)
def test_the_same_answers(tmp_path, host):
    absent, needed, size = HOSTS[host]
    if not get_host_cpu_features().get(needed):
        pytest.skip(f"no machine with {needed}")
    (tmp_path / "sitecustomize.py").write_text(SITE.format(absent=absent))
    path = os.pathsep.join(map(str, (tmp_path, TESTS, TESTS.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CPU_NAME": host, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == size
