"""What the libraries below raise for a model that is not right, as the end of a sentence."""

from google.protobuf.message import DecodeError, EncodeError

# What onnx, onnx-ir and protobuf raise for files and models that are not right.
BROKEN = (
    DecodeError,
    EncodeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)


def reason(error: BaseException) -> str:
    """One line of at most 200 characters: what was wrong in the first place."""
    while error.__cause__ is not None:  # onnx-ir wraps an error once for every level of the graph
        error = error.__cause__
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = (text or type(error).__name__).split(" Please contribute")[0]
    return " ".join(text.splitlines()[0].split())[:200]
