"""The exceptions of the library: each is an `XpcnnError` and the built-in class that fits it."""


class XpcnnError(Exception):
    """Base of every error that the library raises on purpose."""


class ShapeError(XpcnnError, ValueError):
    """An array or size has a shape that the operation cannot take."""


class DTypeError(XpcnnError, TypeError):
    """An array has a data type that the operation cannot take."""


class BackendError(XpcnnError, RuntimeError):
    """A backend is unknown, is missing on this machine, or failed."""


class MixedBackendsError(BackendError, TypeError):
    """Arrays of two backends met in one call."""


class OutOfMemoryError(BackendError, MemoryError):
    """A device has no memory left for an operation."""


class StateError(XpcnnError, RuntimeError):
    """A call came in the wrong order, such as `backward` before `forward`."""


class DataError(XpcnnError, ValueError):
    """A file or a data set is damaged, inconsistent or not there."""


class ConfigError(XpcnnError, ValueError):
    """An option or argument has a value that is not allowed."""


class NonFiniteError(XpcnnError, ArithmeticError):
    """A loss or gradient became nan or infinite."""
