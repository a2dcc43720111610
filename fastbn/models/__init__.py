"""Networks to train and measure on."""

from fastbn.models.lenet import lenet

__all__ = ["lenet"]
