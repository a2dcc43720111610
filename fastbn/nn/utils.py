"""What changes a layer's parameters, under the names of ``torch.nn.utils``."""

from fastbn.nn.spectral_norm import remove_spectral_norm, spectral_norm
from fastbn.nn.weight_norm import remove_weight_norm, weight_norm

__all__ = ["remove_spectral_norm", "remove_weight_norm", "spectral_norm", "weight_norm"]
