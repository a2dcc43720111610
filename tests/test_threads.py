"""Threads: the same bits for any number of them, right answers from many Python threads and after a fork."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from helpers import ORDERS

import fastbn
import fastbn.functional as F
from fastbn import _threads
from fastbn.errors import ArgumentError

ROOT = Path(__file__).parents[1]
LAYERS = ["omp", "workqueue"]


def batch_norm(x):
    mean, var = np.zeros(x.shape[1], x.dtype), np.ones(x.shape[1], x.dtype)
    return F.batch_norm(x, mean, var, training=True, residual=x, relu=True), mean, var


def batch_norm_eval(x):
    return (F.batch_norm(x, np.zeros(x.shape[1], x.dtype), np.ones(x.shape[1], x.dtype)),)


def batch_norm_backward(x):
    ones = np.ones(x.shape[1], x.dtype)
    y, saved = F.batch_norm_forward(x, ones, ones, residual=x, relu=True)
    return F.batch_norm_backward(y, saved)


def conv2d(x):
    weight = np.linspace(-1, 1, 30 * 8 * 9, dtype=x.dtype).reshape(30, 8, 3, 3)
    return (F.conv2d(x, weight, groups=2, padding=1, relu=True),)


def conv2d_backward(x):
    weight = np.linspace(-1, 1, 16 * 8 * 9, dtype=x.dtype).reshape(16, 8, 3, 3)
    return F.conv2d_backward(x, x, weight, groups=2, padding=1)


def linear(x):
    rows = x.reshape(-1, 40)
    weight = np.linspace(-1, 1, 50 * 40, dtype=x.dtype).reshape(50, 40)
    return (F.linear(rows, weight, weight[:, 0], relu=True),)


def linear_backward(x):
    rows = x.reshape(-1, 40)
    return F.linear_backward(rows, rows, np.linspace(-1, 1, 1600, dtype=x.dtype).reshape(40, 40))


def max_pool2d(x):
    y, indices = F.max_pool2d_forward(x, 3, 2)
    return y, indices, F.max_pool2d_backward(y, indices, x.shape)


def avg_pool2d(x):
    y = F.avg_pool2d(x, 3, 2)
    return y, F.avg_pool2d_backward(y, x, 3, 2)


def relu(x):
    return F.relu(x), F.relu_backward(x, x)


def sigmoid(x):
    return F.sigmoid(x), F.sigmoid_backward(x, x)


def cross_entropy(x):
    logits, targets = x.reshape(-1, 40), np.arange(x.size // 40) % 40
    loss, saved = F.cross_entropy_forward(logits, targets)
    return np.float64(loss), saved, F.cross_entropy_backward(logits, targets, saved)


# Each with the least number of its kernels, all of them with enough to do to be parallel.
OPERATIONS = {
    batch_norm: 1,
    batch_norm_eval: 1,
    batch_norm_backward: 2,
    conv2d: 1,
    conv2d_backward: 2,
    linear: 1,
    linear_backward: 1,
    max_pool2d: 2,
    avg_pool2d: 2,
    relu: 2,
    sigmoid: 2,
    cross_entropy: 2,
}
# The last is a matrix: batch norm reads its rows.
SHAPES = {"nchw": (9, 16, 25, 20), "channels_last": (9, 16, 25, 20), "matrix": (4500, 16)}
IMAGES_ONLY = (conv2d, conv2d_backward, max_pool2d, avg_pool2d)

CASES = [(o, shape) for o in OPERATIONS for shape in SHAPES if shape != "matrix" or o not in IMAGES_ONLY]


def bits(arrays):
    return [array.tobytes() for array in arrays if array is not None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("operation", "shape"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_any_number_of_threads_gives_the_same_bits(rng, monkeypatch, operation, shape, dtype):
    x = ORDERS.get(shape, np.ascontiguousarray)(rng.standard_normal(SHAPES[shape]).astype(dtype))
    entered, enter = [], _threads._parallel
    monkeypatch.setattr(_threads, "_parallel", lambda *call: entered.append(None) or enter(*call))
    fastbn.set_num_threads(1)
    want = bits(operation(x))
    assert not entered
    for threads in (2, 7):
        fastbn.set_num_threads(threads)
        assert bits(operation(x)) == want
    assert len(entered) >= 2 * OPERATIONS[operation]


def test_small_arrays_are_not_worth_a_thread(monkeypatch):
    monkeypatch.setattr(_threads, "_parallel", lambda *call: pytest.fail("a parallel region for 8 elements"))
    fastbn.set_num_threads(2)
    F.relu(np.zeros(8))


@pytest.mark.parametrize("n", [0, -1, _threads.max_threads() + 1, True, 2.0, "2", None])
def test_a_number_of_threads_that_cannot_be_is_refused(n):
    before = fastbn.get_num_threads()
    with pytest.raises(ArgumentError, match=r"^set_num_threads: n must be an integer from 1 to 8, got .*; set NUMBA"):
        fastbn.set_num_threads(n)
    assert fastbn.get_num_threads() == before


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_number_of_threads_holds_in_every_python_thread(n):
    seen = []

    def look():
        kernel = SimpleNamespace(parallel=lambda parallel: seen.append((parallel, numba.get_num_threads())))
        _threads.launch(kernel, work=10**6)

    fastbn.set_num_threads(n)
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(True, n), (True, n)]


def test_a_number_set_in_numba_gives_way():
    seen = []
    kernel = SimpleNamespace(parallel=lambda parallel: seen.append(numba.get_num_threads()))
    fastbn.set_num_threads(2)
    for n in (1, 3):
        numba.set_num_threads(n)
        _threads.launch(kernel, work=10**6)
    assert seen == [2, 2]


def test_one_thread_is_serial():
    seen = []
    fastbn.set_num_threads(1)
    _threads.launch(SimpleNamespace(serial=seen.append), work=10**6)
    assert seen == [None]


PRELUDE = """
import multiprocessing, os, sys, threading
import numpy as np
import fastbn, fastbn.functional as F

rng = np.random.default_rng(0)
x = rng.standard_normal((8, 16, 24, 24)).astype(np.float32)
weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)

last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
short = np.ascontiguousarray(x.reshape(64, 128, 3, 3))

def norms():
    for lying in last, short:
        y, saved = F.batch_norm_forward(lying, residual=lying, relu=True)
        yield from (y, *F.batch_norm_backward(lying, saved)[::3])

def answers(_=None):
    y, saved = F.batch_norm_forward(x, relu=True)
    convolved = F.conv2d(y, weight, padding=1)
    arrays = [y, *F.batch_norm_backward(x, saved)[:1], convolved, *F.conv2d_backward(convolved, x, weight, padding=1)]
    return [array.tobytes() for array in (*arrays, *norms())]

def layer_is_there():
    import numba
    try:
        numba.threading_layer()
    except ValueError:
        return  # nothing parallel has run: it is not loaded yet
    assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]

fastbn.set_num_threads(1)
want = answers()
fastbn.set_num_threads(3)
"""

CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(16) as pool:
    results = list(pool.map(answers, range(48)))
assert all(result == want for result in results)
layer_is_there()
"""

FORK = """
def child_is_right():
    pid = os.fork()
    if pid == 0:
        right = answers() == want
        os._exit(0 if right else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

assert answers() == want
layer_is_there()
child_is_right()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(answers, range(4), chunksize=1) == [want] * 4
thread = threading.Thread(target=child_is_right)
thread.start()
thread.join()
assert answers() == want
"""

FORK_EARLY = """
pid = os.fork()  # kernels have run, and Numba has started its threads, but nothing has been parallel
if pid == 0:
    os._exit(0 if answers() == want else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert answers() == want
"""

FORK_WHILE_BUSY = """
assert answers() == want
stop = threading.Event()

def busy():
    while not stop.is_set():
        answers()

threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if answers() == want else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
"""

PRE_FORK = """
from concurrent.futures import ThreadPoolExecutor

def serve():
    with ThreadPoolExecutor(4) as pool:
        return all(result == want for result in pool.map(answers, range(8)))

assert answers() == want  # the master has used its threads: the workers may not
workers = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if serve() else 3)
    workers.append(pid)
assert serve()
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [0, 0, 0]
"""

JOBLIB = """
from joblib import Parallel, delayed

assert answers() == want
for backend in "threading", "loky":
    assert Parallel(n_jobs=3, backend=backend)(delayed(answers)() for _ in range(6)) == [want] * 6
layer_is_there()
"""

DATA_LOADER = """
import torch

class Answers(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return int(answers() == want)

assert answers() == want
for workers in 0, 2:
    assert [int(right) for right in torch.utils.data.DataLoader(Answers(), num_workers=workers)] == [1] * 6
"""

SCRIPTS = {"concurrent calls": CONCURRENT, "fork": FORK, "fork early": FORK_EARLY, "fork while busy": FORK_WHILE_BUSY}
SCRIPTS |= {"pre-fork": PRE_FORK, "joblib": JOBLIB, "torch DataLoader": DATA_LOADER}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_process(layer, script):
    if "fork" in script and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    if "torch" in script:
        pytest.importorskip("torch")
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "8"}
    probe = f"import numba.np.ufunc.{layer}pool" if layer == "omp" else "pass"
    if subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True).returncode:
        pytest.skip(f"no {layer} on this system")
    command = [sys.executable, "-c", PRELUDE + SCRIPTS[script]]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
