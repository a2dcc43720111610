"""LeNet-5 (LeCun et al. 1998) with batch norm after every hidden layer: 44,878 parameters."""

from fastbn.models.norms import norm_named
from fastbn.nn.activation import Sigmoid
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.model_init import fixup_
from fastbn.nn.pooling import AvgPool2d


def lenet(num_classes: int = 10, in_channels: int = 1, norm: str = "batch") -> Sequential:
    """LeNet for (N, in_channels, 28, 28): sigmoids and average pooling, as in the original.

    norm: of every hidden layer, a name of ``fastbn.models.norms.NORMS``: "batch"; "renorm"; "group" with up to four
    groups; "layer", over a whole image; "instance", of the convolutions alone; "weight" and "spectral" for norms of the
    weights; "fixup" for FixUp's scalars and initial values (there is no residual branch to scale); "none".
    Raises ArgumentError.
    """
    chosen = norm_named("lenet", norm)
    model = Sequential(
        *chosen.hidden(Conv2d(in_channels, 6, 5), Sigmoid()),
        AvgPool2d(2),
        *chosen.hidden(Conv2d(6, 16, 5), Sigmoid()),
        AvgPool2d(2),
        Flatten(),
        *chosen.hidden(Linear(256, 120), Sigmoid()),
        *chosen.hidden(Linear(120, 84), Sigmoid()),
        *chosen.output(Linear(84, num_classes)),
    )
    if chosen.scalars:
        fixup_(model)
    return model
