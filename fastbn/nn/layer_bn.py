"""A layer and its batch norm in one module, folded at every step of training.

The algebra is in ``fastbn.functional.fold_training``.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from fastbn.errors import ArgumentError, DtypeError, ShapeError, StateError
from fastbn.functional import fold_training as algebra
from fastbn.functional.activation import relu_backward
from fastbn.functional.fold_training import Folded, Norm, Operation, Quantizer
from fastbn.functional.norm import BatchNormSaved
from fastbn.nn.activation import ReLU
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.containers import Sequential
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization

MODES = ("batch", "corrected")


class LayerBn(Module):
    """A convolution or linear layer and the batch norm after it, which is folded into the weights while they train.

    mode: with which statistics the weights are folded in training, before they are quantised.
        "batch": those of the batch, as the batch norm itself has them; for quantisers that take their range anew at
        every call, because the weights jump from batch to batch (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
        "corrected": the running ones, as at inference, and the output put right by sigma_R / sigma_B; for quantisers
        whose range must settle (Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2).
    After ``freeze_bn_stats`` both fold with the running statistics, which no longer move: for the last epochs, and for
    batches too small for statistics, because it trains exactly the network that runs at inference (as in arXiv
    2305.11624). Eval mode computes the same.

    weight_quantizer: called with the folded weight in every forward pass, returns what to use in its place, an array of
    its shape and dtype; the gradient passes straight through it. May be set as an attribute, None for none, and is not
    saved in checkpoints. Without one, both modes are the layer and the batch norm one after the other.
    relu: then max(y, 0).

    The children keep their names: the state_dict is that of ``Sequential({"conv": conv, "bn": bn})``, with "linear" for
    "conv" in ``LinearBn1d``.
    """

    layer_name: ClassVar[str] = "conv"
    layer_type: ClassVar[type[Module]]
    norm_type: ClassVar[type[BatchNorm]]

    def _adopt(self, layer: Module, norm: BatchNorm, mode: str, relu: bool, weight_quantizer: Quantizer | None) -> None:
        who = type(self).__name__
        for name, child, kind in ((self.layer_name, layer, self.layer_type), ("bn", norm, self.norm_type)):
            if not isinstance(child, kind):
                raise DtypeError(f"{who}: {name} must be a {kind.__name__}, got {type(child).__name__}")
        if isinstance(layer.weight, Parametrization):
            raise ArgumentError(f"{who}: {self.layer_name} must have a plain weight, got one with {layer.weight.who}")
        if type(norm).forward is not self.norm_type.forward:
            wanted = self.norm_type.__name__
            raise DtypeError(f"{who}: bn must normalise as a {wanted} does, got {type(norm).__name__}")
        if norm.num_features != len(layer.weight.data):
            raise ShapeError(f"{who}: bn must have {len(layer.weight.data)} channels, got {norm.num_features}")
        if not norm.track_running_stats:
            raise ArgumentError(f"{who}: bn must have running statistics, got track_running_stats=False")
        if mode not in MODES:
            raise ArgumentError(f"{who}: mode must be 'batch' or 'corrected', got {mode!r}")
        setattr(self, self.layer_name, layer)
        self.bn = norm
        self.mode = mode
        self.relu = bool(relu)
        self.weight_quantizer = weight_quantizer
        self._statistics: tuple[np.ndarray, np.ndarray] | None = None  # that the last training forward folded with
        self._aside: tuple[Parameter, Parameter | None, BatchNorm] | None = None  # what ``unfold`` gives back

    @classmethod
    def from_pair(
        cls,
        layer: Module,
        norm: BatchNorm,
        mode: str = "batch",
        *,
        relu: bool = False,
        weight_quantizer: Quantizer | None = None,
    ) -> Self:
        """A module made of ``layer`` and ``norm`` themselves: they share parameters, buffers and frozen statistics.

        Raises DtypeError, ShapeError, ArgumentError where they do not fit.
        """
        module = cls.__new__(cls)
        Module.__init__(module)
        module._adopt(layer, norm, mode, relu, weight_quantizer)
        return module.train(layer.training)

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """``from_pair`` of the children."""
        return cls.from_pair(children[cls.layer_name], children["bn"], **options)  # type: ignore[arg-type]

    def config(self) -> dict[str, Any]:
        """Options of ``from_pair``."""
        return {"mode": self.mode, "relu": self.relu}

    # The two parts

    @property
    def layer(self) -> Any:
        """The convolution or linear layer."""
        return self._modules[self.layer_name]

    @property
    def folded(self) -> bool:
        """Whether ``fold_`` has been called, and ``unfold`` has not."""
        return self._aside is not None

    @property
    def _constant(self) -> bool:
        """Whether the statistics are constants, as in eval mode."""
        return self.folded or not self.training or self.bn.frozen or not self.bn.training

    @property
    def _bias(self) -> np.ndarray | None:
        return None if self.layer.bias is None else self.layer.bias.data

    def _operation(self) -> Operation:
        raise TypeError(f"{type(self).__name__}: _operation must be written by the subclass, got none")

    def _norm(self, mean: np.ndarray, var: np.ndarray) -> Norm:
        return Norm(*self.bn.affine_arrays(), mean, var, self.bn.eps)

    def _running(self) -> Norm:
        return self._norm(self.bn.running_mean, self.bn.running_var)

    def _fold(self, norm: Norm) -> Folded:
        who, weight = type(self).__name__, self.layer.weight.data
        try:
            return algebra.fold_quantized(who, self._operation(), weight, self._bias, norm, self.weight_quantizer)
        except ArgumentError as error:
            raise ArgumentError(f"{who}: {error}") from error

    def _current(self) -> Folded:
        if self.folded:
            return Folded(self.layer.weight.data, self.layer.bias.data, None)
        if self._constant or self._statistics is None:
            return self._fold(self._running())
        return self._fold(self._norm(*self._statistics))

    @property
    def folded_weight(self) -> np.ndarray:
        """The folded, quantised weight, anew at each call.

        In training mode with the statistics of the last forward, else with the running ones, as eval mode uses it.
        """
        return self._current().weight

    @property
    def folded_bias(self) -> np.ndarray:
        """(C,), the bias that belongs to ``folded_weight``."""
        return self._current().bias

    # Forward and backward

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As the layer's; running statistics move in training mode unless frozen."""
        self._check_input(x)
        if self._constant:
            return self._forward_constant(x)
        if self.weight_quantizer is None:
            return self._forward_plain(x)
        return self._forward_quantized(x)

    def _check_input(self, x: np.ndarray) -> None:
        """The layer's doors check x."""

    def _forward_constant(self, x: np.ndarray) -> np.ndarray:
        """Eval mode, frozen statistics, and after ``fold_``."""
        used = self._current()
        y = self._operation().forward(x, used.weight, used.bias, self.relu, None)
        self._keep(algebra.SavedConstant(x, used.weight, y if self.relu else None))
        return y

    def _forward_plain(self, x: np.ndarray) -> np.ndarray:
        """No quantiser: one convolution and its batch norm are the same."""
        running = self.bn.running_mean.copy(), self.bn.running_var.copy()
        y = self.bn(self.layer(x), relu=self.relu)
        saved = self._batch()
        self._statistics = (saved.mean, saved.var) if self.mode == "batch" else running
        self._keep(algebra.SavedByChildren())
        return y

    def _forward_quantized(self, x: np.ndarray) -> np.ndarray:
        running = self._norm(self.bn.running_mean.copy(), self.bn.running_var.copy())
        operation = self._operation()
        memory: np.ndarray | None = self.bn(self.layer(x))  # for the statistics; the output may lie there
        if self.bn._forward_hooks:
            memory = None
        saved = self._batch()
        norm = running if self.mode == "corrected" else self._norm(saved.mean, saved.var)
        used = self._fold(norm)
        if self.mode == "corrected":
            y = operation.forward(x, used.weight, None, False, memory)
            y = algebra.corrected_output(y, self._bias, saved, norm, self.relu)
        else:
            y = operation.forward(x, used.weight, used.bias, self.relu, memory)
        assert used.error is not None
        self._statistics = norm.mean, norm.var
        self._keep(algebra.SavedQuantized(x, used.error, norm, y if self.relu else None))
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx like x, or None unless it is needed."""
        saved = self._take()
        if isinstance(saved, algebra.SavedByChildren):
            return self.layer.backward(self.bn.backward(dy), need_dx=need_dx)
        dy = dy if saved.y is None else relu_backward(dy, saved.y)
        constant = isinstance(saved, algebra.SavedConstant)
        return (self._backward_constant if constant else self._backward_quantized)(dy, saved, need_dx)

    def _backward_constant(self, dy: np.ndarray, saved: algebra.SavedConstant, need_dx: bool) -> np.ndarray | None:
        weight, bias, operation = self.layer.weight, self.layer.bias, self._operation()
        if self.folded:
            dx, dweight, dbias = operation.backward(dy, saved.x, saved.used, need_dx)
            weight.accumulate(dweight)
            bias.accumulate(dbias)
            return dx
        gradients = algebra.frozen_backward(
            dy, saved.x, weight.data, self._bias, saved.used, operation, self._running(), need_dx
        )
        for parameter, gradient in zip((weight, bias, self.bn.weight, self.bn.bias), gradients[1:], strict=True):
            if isinstance(parameter, Parameter) and gradient is not None:
                parameter.accumulate(gradient)
        return gradients.dx

    def _backward_quantized(self, dy: np.ndarray, saved: algebra.SavedQuantized, need_dx: bool) -> np.ndarray | None:
        x, error, batch, operation = saved.x, saved.error, self._batch(), self._operation()
        dz = self.bn.backward(dy)
        if self.mode == "corrected":
            rest = algebra.corrected_error_backward(dy, dz, x, operation, error, batch, saved.norm, need_dx)
        else:
            rest = algebra.error_backward(dy, x, operation, error, need_dx)
        dx = self.layer.backward(dz, need_dx=need_dx)
        return None if dx is None or rest is None else np.add(dx, rest, out=dx)

    def _batch(self) -> BatchNormSaved:
        """What the batch norm kept of this step."""
        saved = self.bn.saved
        assert saved is not None
        return saved

    # Frozen statistics, and the end of training

    def freeze_bn_stats(self) -> Self:
        """Fold with the running statistics as constants from now on, in training too, until ``unfreeze_bn_stats``."""
        self._refuse_folded("freeze_bn_stats")
        self.bn.freeze()
        return self

    def unfreeze_bn_stats(self) -> Self:
        """Undo ``freeze_bn_stats``."""
        self._refuse_folded("unfreeze_bn_stats")
        self.bn.unfreeze()
        return self

    def fold_(self) -> Self:
        """Become the layer that runs at inference, in place: folded, quantised weights, the batch norm set aside.

        Outputs in eval mode do not change. Raises StateError where it is folded already, ArgumentError where it cannot
        be.
        """
        self._refuse_folded("fold_")
        used, layer = self._fold(self._running()), self.layer
        self._aside = layer.weight, layer.bias, self.bn
        layer.weight = Parameter(used.weight, layer.weight.requires_grad)
        layer.bias = Parameter(used.bias, layer.weight.requires_grad)
        self._restrict(True)
        del self._modules["bn"]
        self._saved = self._statistics = None
        return self

    def unfold(self) -> Self:
        """Undo ``fold_``: the same parameters and batch norm, bit for bit. Raises StateError where it is not folded."""
        if self._aside is None:
            raise StateError(f"{type(self).__name__}.unfold: the layer must be folded, got one that is not; call fold_")
        self.layer.weight, bias, norm = self._aside
        self.layer.register_parameter("bias", bias)
        self._restrict(False)
        self.bn, self._aside, self._saved = norm.train(self.training), None, None
        return self

    def plain(self) -> Module:
        """The layer that runs at inference as a new one, in eval mode, with a ReLU in a Sequential where there is one.

        Raises ArgumentError where the statistics cannot be folded.
        """
        twin = copy.deepcopy(self).eval()
        layer = twin.layer if self.folded else twin.fold_().layer
        return Sequential({self.layer_name: layer, "relu": ReLU()}).eval() if self.relu else layer

    def _restrict(self, folded: bool) -> None:
        """Let the folded layer refuse the inputs that the batch norm would have treated otherwise."""

    def _refuse_folded(self, what: str) -> None:
        if self.folded:
            raise StateError(
                f"{type(self).__name__}.{what}: the layer must not be folded, got one that is; call unfold first"
            )
