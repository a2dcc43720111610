"""IDX files, the format of MNIST: a type byte, a rank byte, big-endian sizes, then the values; gzipped or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from fastbn.errors import ModelError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file. Raises ModelError for a file that is missing, truncated or something else."""
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"read_idx: {path} must be a readable IDX file, got {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES:
        raise ModelError(f"read_idx: {path} must start as an IDX file does, got {data[:4]!r}")
    dtype, rank = np.dtype(DTYPES[data[2]]), data[3]
    start = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4")) if len(data) >= start else ()
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(shape) != rank or len(data) != wanted:
        raise ModelError(f"read_idx: {path} must hold {wanted} bytes for its shape {shape[:8]}, got {len(data)}")
    try:
        return np.frombuffer(data, dtype, offset=start).reshape(shape)
    except ValueError as error:
        raise ModelError(f"read_idx: {path} must have sizes that NumPy can hold, got {shape[:8]} ({error})") from error
