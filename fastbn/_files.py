"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastbn.errors import ModelError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write; it takes the name at the end, or is removed after an error.

    Raises ModelError where the folder does not exist or cannot be written.
    """
    target = Path(path)
    check_target(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise ModelError(f"write: {target} must be in a folder that can be written, got {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise ModelError(f"write: {target} must be writable, got {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: str | Path) -> None:
    """Raise ModelError where ``replacing(path)`` would, before the work that is to be written."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ModelError(f"write: {target} must be in a folder that exists, got no {target.parent}")
    if target.is_dir():
        raise ModelError(f"write: {target} must be a file, got a folder")
    if not os.access(target.parent, os.W_OK):
        raise ModelError(f"write: {target} must be in a folder that can be written, got {target.parent}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
