"""Running the commands in this process, and what must hold whenever they refuse."""

import struct

import numpy as np


def run(main, arguments, capsys):
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def snapshot(folder):
    """Everything below ``folder``: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(main, arguments, capsys, folder, prog):
    """Exit code 2, one line on stderr, and not a byte changed in ``folder``; returns the line."""
    before = snapshot(folder)
    code, out, err = run(main, arguments, capsys)
    assert code == 2, (code, out, err)
    assert err.startswith(f"{prog}")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in out + err
    assert snapshot(folder) == before
    return err.strip()


def write_idx(path, array):
    """An IDX file of unsigned bytes."""
    array = np.ascontiguousarray(array, np.uint8)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def tiny_mnist(folder, train=48, test=16, size=28, classes=10):
    """IDX files of MNIST's names with random digits in ``folder``/mnist."""
    rng = np.random.default_rng(0)
    (folder / "mnist").mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        write_idx(folder / "mnist" / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, size, size)))
        write_idx(folder / "mnist" / f"{prefix}-labels-idx1-ubyte", rng.integers(0, classes, count))
    return folder
