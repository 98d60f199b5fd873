"""Devices, the helper thread, and that importing minidl touches nothing."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import minidl as md
from minidl import backend
from minidl.errors import DeviceError
from minidl.ops import products


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout  # fmt: skip


def test_import_brings_nothing_beyond_numpy():
    code = (
        "import sys, numpy.random; before = set(sys.modules); import minidl; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before"
        " if m.split('.')[0] not in sys.stdlib_module_names}))"
    )
    assert run(code).strip() == "['minidl']"


def test_layers_and_training_are_loaded_when_asked_for():
    code = (
        "import sys, minidl as md\n"
        "assert not {'minidl.layers', 'minidl.training'} & set(sys.modules)\n"
        "names = set(dir(md))\n"
        "assert {'layers', 'fit', 'losses', 'testing', 'tanh', 'lipschitz'} <= names\n"
        "print(all(hasattr(md, name) for name in names), md.fit.__name__, md.layers.Dense.__name__)"
    )
    assert run(code).split() == ["True", "fit", "Dense"]


def test_namespace_and_devices():
    assert backend.namespace(np.ones(2)) is np and backend.namespace(2.0) is np
    assert backend.namespace(np.float32(2)) is np
    assert backend.device_of(np.ones(2)) == "cpu"
    assert backend.is_array(np.ones(2)) and not backend.is_array([1]) and not backend.is_array(2.0)
    assert backend.special(np.ones(2)).__name__ == "scipy.special"
    array = np.ones(2)
    assert backend.to_device(array, "cpu") is array
    moved = backend.to_device(array, "strict")
    assert backend.device_of(moved) == "strict" and backend.to_device(moved, "strict") is moved
    np.testing.assert_array_equal(backend.to_host(moved), array)


def test_unknown_and_missing_devices():
    with pytest.raises(DeviceError, match="'cpu', 'gpu'"):
        backend.to_device(np.ones(2), "tpu")
    with pytest.raises(DeviceError), md.device("tpu"):
        pass
    if not backend.gpu_available():
        with pytest.raises(DeviceError, match="CuPy"):
            md.tensor([1.0], device="gpu")


def test_device_context():
    with md.device("strict"):
        assert md.tensor([1.0]).device == "strict"
        assert md.tensor(np.ones(2)).device == "strict"
        assert md.tensor([1.0], device="cpu").device == "cpu"
    assert md.tensor([1.0]).device == "cpu"


def where():
    return threading.current_thread().name


def test_in_two_uses_the_helper_inside_threads_only():
    assert backend.in_two(where, where) == (where(), where())
    with md.threads(1):
        assert backend.in_two(where, where) == (where(), where())
    with md.threads(2):
        assert backend.in_two(where, where) == (where(), "minidl-helper")
        nested = backend.in_two(lambda: backend.in_two(where, where), where)
        assert nested == ((where(), where()), "minidl-helper")  # busy: passed by
    with pytest.raises(ValueError, match="at least 1"), md.threads(0):
        pass


def fail(error):
    raise error


def test_in_two_hands_back_errors_after_both_have_ended():
    ended = []

    def slow():
        time.sleep(0.02)
        ended.append(True)

    with md.threads(2):
        with pytest.raises(KeyError):
            backend.in_two(slow, lambda: fail(KeyError()))
        with pytest.raises(KeyError):
            backend.in_two(lambda: fail(KeyError()), slow)
        assert ended == [True, True]
        assert backend.in_two(where, where)[1] == "minidl-helper"  # and works on


def test_in_two_carries_the_error_state():
    zero = np.zeros(1)
    with md.threads(2), np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        backend.in_two(where, lambda: 1 / zero)


def test_threads_scopes_blas():
    from threadpoolctl import threadpool_info

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas()
    with md.threads(2):
        assert set(blas()) <= {1} and not backend.blas_divides()
        with md.threads(1, blas=1):
            assert set(blas()) <= {1} and backend.blas_divides()
    assert blas() == before and not backend.blas_divides()
    with pytest.raises(ValueError, match="blas: expected at least 1"), md.threads(2, blas=0):
        pass


def test_products_are_left_to_blas_that_has_threads(monkeypatch):
    halved = []
    monkeypatch.setattr(products, "in_two", lambda *both: halved.append([f() for f in both]))
    x = np.ones((300, 300), np.float32)
    with md.threads(2, blas=2):
        assert (md.matmul(x, x) == 300).all() and not halved
    with md.threads(2):
        assert (md.matmul(x, x) == 300).all() and len(halved) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_helper_is_remade_after_a_fork():
    code = (
        "import os, threading, minidl as md\n"
        "from minidl import backend\n"
        "name = lambda: threading.current_thread().name\n"
        "with md.threads(2):\n"
        "    backend.in_two(name, name)\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os._exit(0 if backend.in_two(name, name)[1] == 'minidl-helper' else 1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert run(code).strip() == "0"


def test_tune_allocator_in_a_process_of_its_own():
    code = "import minidl as md; print(md.tune_allocator())"
    assert run(code).strip() in ("True", "False")
