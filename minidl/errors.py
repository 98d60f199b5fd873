"""Every exception of minidl. Messages name op, argument, what was expected, what came, the mend."""


class MinidlError(Exception):
    """Base of all of minidl's errors."""


class ShapeError(MinidlError, ValueError):
    """Shapes do not fit the op."""


class DtypeError(MinidlError, TypeError):
    """A dtype that the op, or the engine, does not take."""


class DeviceError(MinidlError, ValueError):
    """Arrays of several devices in one op, or a device that this machine lacks."""


class GradientError(MinidlError, RuntimeError):
    """A derivative that cannot be had: a freed graph, a changed input, a wrong rule."""


class BuildError(MinidlError, RuntimeError):
    """A layer is used before its sizes are known."""


class SerializationError(MinidlError, ValueError):
    """A file that minidl did not write, or that does not fit what it is loaded into."""


class CorpusError(MinidlError, ValueError):
    """A data file is missing, or is not in the form expected."""
