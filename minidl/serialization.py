"""Save and load: an `.npz` of plain arrays and one JSON text. No pickle: loading runs no code."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from minidl import backend
from minidl.errors import SerializationError
from minidl.graph import Tensor

_TEXT = "minidl.json"  # the archive's member that holds everything but the arrays
_ARRAY = "$array"  # {"$array": name} stands for an array in the JSON
_FORMAT = 1


def save(path: str | os.PathLike, **contents: Any) -> None:
    """Write `contents` to `path`: `md.save("run.npz", model=model, optimizer=optimizer, step=7)`.

    Each is an object with a state (a layer, an optimiser, Batches, a callback, a generator), or
    nested dicts and lists of arrays, numbers, strings, booleans and None; tuples come back as
    lists. The file is complete or absent: it is written under another name, synced and renamed.
    Raises SerializationError for anything else, BuildError for a layer that is not built.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = {name: _encode(_state(value), name, arrays) for name, value in contents.items()}
    text = json.dumps({"format": _FORMAT, "contents": tree})
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
                archive.writestr(_TEXT, text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


def load(path: str | os.PathLike, **objects: Any) -> dict[str, Any]:
    """Read what `save` wrote, as a dict of the names given there.

    Objects given under the same names get their state back: `md.load(path, model=model)`. Raises
    SerializationError for a file that is damaged or not minidl's, a name that it does not hold, and
    a state that does not fit; OSError where there is no such file.
    """
    contents = _read(path)
    missing = [name for name in objects if name not in contents]
    if missing:
        raise SerializationError(
            f"load: {os.fspath(path)} holds {', '.join(contents) or 'nothing'}, "
            f"not {', '.join(missing)}"
        )
    for name, value in objects.items():
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(contents[name])
        elif hasattr(value, "set_state"):
            value.set_state(contents[name])
        else:
            raise SerializationError(
                f"load: {name}: expected an object with load_state_dict, got "
                f"{type(value).__name__}; take its value from the dict that load returns"
            )
    return contents


def _read(path: str | os.PathLike) -> dict[str, Any]:
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if _TEXT not in archive.namelist():
                    raise SerializationError(f"load: {name} was not written by md.save")
                document = json.loads(archive.read(_TEXT))
                if document["format"] != _FORMAT:
                    raise SerializationError(
                        f"load: {name} is of format {document['format']}, this minidl reads "
                        f"format {_FORMAT}"
                    )
                return {k: _decode(v, archive) for k, v in document["contents"].items()}
        except SerializationError:
            raise
        except Exception as error:  # damage shows itself as any of many errors
            raise SerializationError(
                f"load: {name} is damaged, or no file of md.save: {error}"
            ) from error


def _state(value: Any) -> Any:
    for method in ("state_dict", "state"):
        if callable(getattr(value, method, None)):
            return getattr(value, method)()
    return value


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` for JSON, its arrays put aside under their path."""
    if isinstance(value, Tensor):
        value = value._data
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if backend.is_array(value):
        array = backend.to_host(value)
        if array.dtype.kind not in "biufUS":
            raise SerializationError(f"save: {name}: arrays of {array.dtype} cannot be saved")
        while name in arrays:  # {"a": {"b": x}, "a/b": y}
            name += "_"
        arrays[name] = array
        return {_ARRAY: name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise SerializationError(
                    f"save: {name}: expected strings as keys (but for {_ARRAY!r}), got {key!r}"
                )
        return {key: _encode(item, f"{name}/{key}", arrays) for key, item in value.items()}
    raise SerializationError(
        f"save: {name}: cannot save {type(value).__name__}; expected an object with state_dict, or "
        "arrays, numbers, strings, lists and dicts"
    )


def _decode(value: Any, archive: zipfile.ZipFile) -> Any:
    if isinstance(value, list):
        return [_decode(item, archive) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY not in value:
        return {key: _decode(item, archive) for key, item in value.items()}
    with archive.open(f"{value[_ARRAY]}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        member.read()  # to the end, where the check sum stands
    return array


def _sync_directory(directory: Path) -> None:
    """Make the renaming itself durable, where the system lets a directory be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
