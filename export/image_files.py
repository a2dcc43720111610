"""A folder of images as one array for an input of a model, read as it is asked for."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.proof.inputs import Input
from fastbn.errors import ModelError

SIDE = 224  # of an image where the model leaves it open
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


class Images:
    """The images in ``folder``, in the order of their names, for the input ``entry``: slices of it are arrays.

    Resized to the input's (N, C, H, W) or (N, H, W, C), 224 where H and W are open; floats are scaled to 0 .. 1.
    Raises ModelError where the input takes no images, there are none, or pillow is not installed.
    """

    def __init__(self, folder: Path, entry: Input) -> None:
        self._files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        if not self._files:
            raise ModelError(f"data: {folder} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
        if importlib.util.find_spec("PIL") is None:
            raise ModelError("data: pillow must be installed to read images, got none; pip install pillow")
        axes = entry.axes
        if len(axes) != 4 or not {axes[1], axes[3]} & {1, 3}:
            raise ModelError(f"data: images must be for an input of 4 axes with 1 or 3 channels, got {list(axes)}")
        if not entry.type.is_floating_point() and entry.type != ir.DataType.UINT8:
            raise ModelError(f"data: images must be for an input of floats or uint8, got {entry.type.numpy()}")
        self._channels_first = axes[1] in (1, 3)
        channels = axes[1] if self._channels_first else axes[3]
        sides = axes[2:] if self._channels_first else axes[1:3]
        height, width = (side if isinstance(side, int) else SIDE for side in sides)
        self._mode, self._size = "L" if channels == 1 else "RGB", (height, width)
        self.dtype: np.dtype = np.dtype(entry.type.numpy())
        self.ndim = len(axes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: slice) -> np.ndarray:
        stack = np.stack([_pixels(file, self._mode, *self._size) for file in self._files[rows]])
        if self.dtype != np.uint8:
            stack = (stack / np.float32(255)).astype(self.dtype)
        return stack.transpose(0, 3, 1, 2) if self._channels_first else stack


def _pixels(file: Path, mode: str, height: int, width: int) -> np.ndarray:
    """(height, width, channels), bytes."""
    import PIL.Image

    try:
        with warnings.catch_warnings(), PIL.Image.open(file) as image:
            warnings.simplefilter("ignore")
            pixels = np.asarray(image.convert(mode).resize((width, height)))
    except (OSError, ValueError, SyntaxError, MemoryError, PIL.Image.DecompressionBombError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"data: {file} must be an image, got {reason}") from error
    return pixels.reshape(height, width, -1)
