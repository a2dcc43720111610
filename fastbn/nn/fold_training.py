"""The layers of a model that are trained with their batch norm folded in, all at once."""

from fastbn.errors import ArgumentError, DtypeError, StateError
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module


def freeze_bn_stats(model: Module) -> Module:
    """``freeze_bn_stats`` of every ``LayerBn`` of ``model``; other batch norms have ``freeze``.

    Returns ``model``. Raises StateError where a layer is folded.
    """
    for _, layer in _layers("freeze_bn_stats", model):
        layer.freeze_bn_stats()
    return model


def unfreeze_bn_stats(model: Module) -> Module:
    """Undo ``freeze_bn_stats``. Returns ``model``. Raises StateError where a layer is folded."""
    for _, layer in _layers("unfreeze_bn_stats", model):
        layer.unfreeze_bn_stats()
    return model


def fold_(model: Module) -> Module:
    """``fold_`` of every ``LayerBn`` of ``model``, in place, all of them or none.

    Returns ``model``. Raises StateError where one is folded already, ArgumentError where one cannot be, naming it.
    """
    layers = _layers("fold_", model)
    for name, layer in layers:
        if layer.folded:
            raise StateError(f"fold_: no layer must be folded yet, got {name} that is; call unfold first")
    done: list[LayerBn] = []
    for name, layer in layers:
        try:
            layer.fold_()
        except ArgumentError as error:
            for folded in done:
                folded.unfold()
            raise ArgumentError(f"fold_: {name}: {error}") from error
        done.append(layer)
    return model


def unfold(model: Module) -> Module:
    """Undo ``fold_``, bit for bit. Returns ``model``. Raises StateError where a ``LayerBn`` is not folded."""
    layers = _layers("unfold", model)
    for name, layer in layers:
        if not layer.folded:
            raise StateError(f"unfold: every layer must be folded, got {name} that is not; call fold_ first")
    for _, layer in layers:
        layer.unfold()
    return model


def _layers(who: str, model: Module) -> list[tuple[str, LayerBn]]:
    """With their names; the model itself is "the model"."""
    if not isinstance(model, Module):
        raise DtypeError(f"{who}: model must be a fastbn.nn.Module, got {type(model).__name__}")
    return [(name or "the model", module) for name, module in model.named_modules() if isinstance(module, LayerBn)]
