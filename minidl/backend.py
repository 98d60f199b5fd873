"""Which module owns an array, where arrays live, and how much of the machine the work may use.

Arrays decide: an op runs where its arrays are. `namespace(x)` gives the module whose functions take
`x`: NumPy, CuPy (loaded at first use, only here) or the strict stand-in, which registers itself.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from minidl.errors import DeviceError, DtypeError

Array = Any  # np.ndarray, cupy.ndarray or minidl.testing.strict's: NumPy's interface in common


# --- Owners ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """One kind of array: its type, its module, and the ways from and to the host."""

    name: str
    array_type: type
    module: Any
    from_host: Callable[[np.ndarray], Array]
    to_host: Callable[[Array], np.ndarray]
    special: Callable[[], Any]  # loads the counterpart of scipy.special


def _scipy_special() -> ModuleType:
    import scipy.special

    return scipy.special


_CPU = Owner("cpu", np.ndarray, np, np.asarray, lambda array: array, _scipy_special)
_owners: dict[type, Owner] = {np.ndarray: _CPU}
_modules: dict[type, Any] = {kind: np for kind in (np.ndarray, float, int, bool)}


def register(
    name: str,
    array_type: type,
    module: Any,
    from_host: Callable[[np.ndarray], Array],
    to_host: Callable[[Array], np.ndarray],
    special: Any = None,
) -> None:
    """Make arrays of `array_type` known, as those of device `name`."""
    loader = special if callable(special) else lambda: special
    _owners[array_type] = Owner(name, array_type, module, from_host, to_host, loader)
    _modules[array_type] = module


def _load_cupy() -> ModuleType:
    """CuPy, registered; DeviceError says what is missing."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "device 'gpu' needs CuPy: pip install -e '.[gpu]' (CUDA 13) or '.[gpu-cuda12]'"
        ) from error
    if cupy.ndarray not in _owners:

        def special() -> ModuleType:
            import cupyx.scipy.special

            return cupyx.scipy.special

        register("gpu", cupy.ndarray, cupy, cupy.asarray, cupy.asnumpy, special)
    return cupy


def gpu_available() -> bool:
    """True when CuPy is installed and finds a GPU."""
    try:
        return bool(_load_cupy().cuda.is_available())
    except Exception:  # a broken driver shows itself as any of many errors: no GPU, then
        return False


def _owner_of_type(kind: type) -> Owner | None:
    owner = _owners.get(kind)
    if owner is None and "cupy" in sys.modules:
        _load_cupy()
        owner = _owners.get(kind)
    if owner is None and issubclass(kind, np.ndarray):
        return _CPU
    return owner


def is_array(value: object) -> bool:
    """True for an array of any device (not for Tensors, lists or scalars)."""
    kind = type(value)
    return kind in _owners or _owner_of_type(kind) is not None


def namespace(array: Array) -> Any:
    """The module whose functions take `array`; NumPy for Python and NumPy scalars."""
    module = _modules.get(type(array))
    if module is None:
        owner = _owner_of_type(type(array))
        module = _modules[type(array)] = np if owner is None else owner.module
    return module


def special(array: Array) -> Any:
    """`scipy.special`, or what stands for it where `array` lives."""
    owner = _owner_of_type(type(array))
    return (owner or _CPU).special()


# --- Devices --------------------------------------------------------------------------------------

_device: contextvars.ContextVar[str] = contextvars.ContextVar("minidl_device", default="cpu")
_dtype: contextvars.ContextVar[np.dtype] = contextvars.ContextVar(
    "minidl_dtype", default=np.dtype(np.float32)
)


def _find(name: str) -> tuple[Owner, int]:
    """The owner of a device's name, and the GPU's number."""
    kind, _, number = name.partition(":")
    if kind == "strict":
        import minidl.testing.strict  # noqa: F401  registers itself
    if kind == "gpu":
        cupy = _load_cupy()
        if not gpu_available():
            raise DeviceError("device 'gpu': CuPy finds no GPU on this machine; use device 'cpu'")
        count = cupy.cuda.runtime.getDeviceCount()
        if number and not (number.isdigit() and int(number) < count):
            raise DeviceError(f"device {name!r}: this machine has gpu:0 to gpu:{count - 1}")
    for owner in _owners.values():
        if owner.name == kind:
            return owner, int(number or 0)
    raise DeviceError(f"device {name!r} is unknown; expected 'cpu', 'gpu', 'gpu:N' or 'strict'")


def device_of(array: Array) -> str:
    """The name of the device on which `array` lives: "cpu", "gpu:0", "strict"."""
    owner = _owner_of_type(type(array))
    if owner is None or owner is _CPU:
        return "cpu"
    return f"gpu:{array.device.id}" if owner.name == "gpu" else owner.name


def to_host(array: Array) -> np.ndarray:
    """`array` as a NumPy array: itself on the CPU, a copy else."""
    owner = _owner_of_type(type(array))
    return np.asarray(array) if owner is None else owner.to_host(array)


def to_device(array: Array, device: str | None = None) -> Array:
    """`array` on `device` (default: the current one); itself where it already is there.

    Raises DeviceError when this machine has no such device.
    """
    owner, number = _find(device or _device.get())
    source = _owner_of_type(type(array))
    if owner is _CPU:
        return to_host(array)
    if owner.name == "gpu":
        with owner.module.cuda.Device(number):
            return owner.module.asarray(array if source is owner else to_host(array))
    return array if source is owner else owner.from_host(to_host(array))


def module_of(device: str) -> Any:
    """The array module of a device, by the device's name."""
    return _find(device)[0].module


def current_device() -> str:
    """The device on which `md.tensor` and layers make new arrays."""
    return _device.get()


def current_dtype() -> np.dtype:
    """The dtype of floats that come without one."""
    return _dtype.get()


@contextmanager
def device(name: str) -> Iterator[None]:
    """New tensors and parameters are made on device `name` inside the context."""
    _find(name)
    token = _device.set(name)
    try:
        yield
    finally:
        _device.reset(token)


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """Floats without a dtype of their own get `dtype` inside the context (else float32)."""
    new = np.dtype(dtype)
    if new.kind != "f":
        raise DtypeError(f"default_dtype: expected a float dtype, got {new}; use 'float32'")
    token = _dtype.set(new)
    try:
        yield
    finally:
        _dtype.reset(token)


# --- Threads and memory ---------------------------------------------------------------------------
# NumPy releases the interpreter's lock in work on large arrays but runs most of it on one core. Two
# Python threads use two. The split is the caller's and depends on shapes alone, so that results do
# not depend on who executes it.

_threads: contextvars.ContextVar[int] = contextvars.ContextVar("minidl_threads", default=1)
_blas_divides: contextvars.ContextVar[bool] = contextvars.ContextVar("minidl_blas", default=False)


class _Helper:
    """A parked thread that runs one callable at a time, handed over by locks (about 50 us)."""

    def __init__(self) -> None:
        self.free = threading.Lock()
        self._start, self._done = threading.Lock(), threading.Lock()
        self._start.acquire()
        self._done.acquire()
        self._task: Callable[[], Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._loop, name="minidl-helper", daemon=True).start()

    def _loop(self) -> None:
        while True:
            self._start.acquire()
            try:
                self._result = self._task()  # type: ignore[misc]
            except BaseException as error:  # handed back to the caller, whatever it is
                self._error = error
            self._task = None
            self._done.release()

    def run(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Both results; the caller holds `free`. The second's error is raised after the first's."""
        context = contextvars.copy_context()  # carries np.errstate and ours
        self._task = lambda: context.run(second)
        self._start.release()
        try:
            mine = first()
        finally:
            self._wait()
            theirs, error = self._result, self._error
            self._result = self._error = None
        if error is not None:
            raise error
        return mine, theirs

    def _wait(self) -> None:
        interrupt = None
        while True:  # an interrupt must not leave the helper writing into our arrays
            try:
                self._done.acquire()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


_helper: _Helper | None = None
_helper_lock = threading.Lock()


def _drop_helper() -> None:  # a fork copies the object, not its thread
    global _helper, _helper_lock
    _helper, _helper_lock = None, threading.Lock()


def _the_helper() -> _Helper:
    global _helper
    with _helper_lock:
        if _helper is None:
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_drop_helper)
            _helper = _Helper()
        return _helper


def in_two(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run two callables over bare NumPy arrays, side by side inside `threads(2)`, else in turn."""
    if _threads.get() > 1:
        helper = _helper or _the_helper()
        if helper.free.acquire(blocking=False):
            try:
                return helper.run(first, second)
            finally:
                helper.free.release()
    return first(), second()


def blas_divides() -> bool:
    """Whether matrix products are left whole, for BLAS to divide: inside `threads(n, blas=m)`."""
    return _blas_divides.get()


@contextmanager
def threads(n: int, blas: int | None = None) -> Iterator[None]:
    """Use `n` threads for the work inside: our helper thread and BLAS's own, restored after.

    From two on, large work is split over two Python threads and each gets half of BLAS's threads:
    one when n is 2, so that the two kinds of threads do not fight for the cores. With `blas`, BLAS
    gets so many and divides matrix products itself, which hands over sooner: for networks of
    little else. Results depend on neither number beyond what BLAS itself does with its threads.

    BLAS's number is the process's: of scopes that overlap in several Python threads the last one to
    end decides what remains.
    """
    for name, value in (("n", n), ("blas", 1 if blas is None else blas)):
        if value < 1:
            raise ValueError(f"threads: {name}: expected at least 1, got {value}")
    from threadpoolctl import threadpool_limits

    tokens = _threads.set(n), _blas_divides.set(blas is not None)
    try:
        with threadpool_limits(blas or max(1, n // 2), user_api="blas"):
            yield
    finally:
        _threads.reset(tokens[0])
        _blas_divides.reset(tokens[1])


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of giving it back to the kernel at each free.

    Large temporaries are then reused without page faults, at the price of a process that does not
    shrink. It concerns the whole process and cannot be undone, hence an explicit call. glibc only:
    returns False, having done nothing, elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return all(
        [
            mallopt(mmap_max, 0),
            mallopt(trim_threshold, 2**31 - 1),
            mallopt(top_pad, 64 * 2**20),
        ]
    )
