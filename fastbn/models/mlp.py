"""Layers of fully connected units, to compare norms and where they stand."""

from collections.abc import Sequence

from fastbn._checks import check_int
from fastbn.errors import ArgumentError
from fastbn.models.norms import PLACEMENTS, norm_named
from fastbn.nn.activation import ReLU, Sigmoid
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.linear import Linear
from fastbn.nn.model_init import fixup_
from fastbn.nn.module import Module

ACTIVATIONS: dict[str, type[Module]] = {"sigmoid": Sigmoid, "relu": ReLU}


def mlp(
    num_classes: int = 10,
    in_features: int = 784,
    hidden: Sequence[int] = (100, 100, 100),
    *,
    norm: str = "batch",
    placement: str = "pre",
    activation: str = "sigmoid",
) -> Sequential:
    """A classifier of (N, *) with ``in_features`` numbers a sample; by default that of 1502.03167, section 4.1.

    hidden: units of each hidden layer. norm: a name of ``fastbn.models.norms.NORMS``, as for ``lenet``. placement:
    "pre" normalises z = W x + b, as the paper does, "post" the activation of z; those that have no layer of their own
    ("instance", "weight", "spectral", "fixup", "none") know no difference. activation: "sigmoid" or "relu".
    Raises ArgumentError, DtypeError.
    """
    chosen = norm_named("mlp", norm)
    if placement not in PLACEMENTS:
        raise ArgumentError(f"mlp: placement must be 'pre' or 'post', got {placement!r}")
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"mlp: activation must be 'sigmoid' or 'relu', got {activation!r}")
    check_int("mlp", "in_features", in_features, 1)
    layers: list[Module] = [Flatten()]
    for features in hidden:
        layers += chosen.hidden(Linear(in_features, features), ACTIVATIONS[activation](), placement)
        in_features = features
    model = Sequential(*layers, *chosen.output(Linear(in_features, num_classes)))
    if chosen.scalars:
        fixup_(model)
    return model
