"""The exceptions that fastbn raises, each also the built-in type a caller would expect."""


class FastbnError(Exception):
    """Base of every error that fastbn raises on purpose; its message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ShapeError(FastbnError, ValueError):
    """An array has the wrong rank, shape or an impossible size."""


class DtypeError(FastbnError, TypeError):
    """An argument has the wrong dtype or type."""


class StateError(FastbnError, RuntimeError):
    """A call came at the wrong time: backward before forward, a loss that is no longer finite."""


class ModelError(FastbnError, ValueError):
    """A model, checkpoint, data file or graph that cannot be used as given."""


class ArgumentError(FastbnError, ValueError):
    """A scalar argument or option has a value that makes no sense."""
