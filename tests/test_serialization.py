"""Files: what goes in comes out, complete or not at all, and no file runs code."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import serialization
from minidl.errors import BuildError, SerializationError
from minidl.layers import Dense, Sequential

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3).filter(lambda k: k != "$array"), inner, max_size=3)
    ),
    max_leaves=8,
)


def exact(value):
    """Comparable, with nan equal to itself."""
    return json.dumps(value)


class TestContents:
    @given(values)
    def test_values_come_back(self, tmp_path_factory, value):
        path = tmp_path_factory.mktemp("values") / "x.npz"
        md.save(path, value=value)
        assert exact(md.load(path)["value"]) == exact(value)

    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6.0).reshape(2, 3).T, np.float16(1.5), np.zeros((0, 3), np.int8),
            np.array(True), np.array([np.nan, -0.0, np.inf], np.float32), np.array(["a", "bc"]),
            np.arange(4, dtype=np.uint64),
        ],
    )  # fmt: skip
    def test_arrays_come_back(self, tmp_path, array):
        md.save(tmp_path / "x.npz", nested={"list": [array, 1]})
        back = md.load(tmp_path / "x.npz")["nested"]["list"][0]
        assert back.dtype == np.asarray(array).dtype and back.shape == np.shape(array)
        assert back.tobytes() == np.asarray(array).tobytes()

    def test_tensors_of_any_device(self, tmp_path):
        md.save(tmp_path / "x.npz", a=md.tensor([1.0, 2.0]), b=md.tensor([3.0], device="strict"))
        contents = md.load(tmp_path / "x.npz")
        assert contents["a"].tolist() == [1, 2] and contents["b"].tolist() == [3]

    def test_names_that_meet(self, tmp_path):
        one, two = np.array([1]), np.array([2])
        md.save(tmp_path / "x.npz", a={"b": one, "b/c": two}, **{"a/b": {"c": one}})
        contents = md.load(tmp_path / "x.npz")
        assert contents["a"]["b"] == 1 and contents["a"]["b/c"] == 2 and contents["a/b"]["c"] == 1

    def test_numpy_reads_the_arrays(self, tmp_path):
        md.save(tmp_path / "x.npz", model=Dense(2, input_size=3))
        with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
            assert archive["model/kernel"].shape == (3, 2)

    def test_objects_get_their_state_back(self, tmp_path):
        one, other = (Sequential([Dense(2, input_size=3)]) for _ in range(2))
        generator = md.random.Generator(1)
        md.save(tmp_path / "x.npz", model=one, random=generator, step=7)
        expected = generator.integers(0, 1000, (5,)).tolist()
        fresh = md.random.Generator(2)
        contents = md.load(tmp_path / "x.npz", model=other, random=fresh)
        assert contents["step"] == 7 and fresh.integers(0, 1000, (5,)).tolist() == expected
        np.testing.assert_array_equal(one[0].kernel.numpy(), other[0].kernel.numpy())


class TestRefusals:
    @pytest.mark.parametrize(
        "value", [object(), {1: 2}, {"$array": "x"}, np.array([object()]), 1j, {"a": {2}}, b"bytes"]
    )
    def test_what_cannot_be_saved(self, tmp_path, value):
        path = tmp_path / "x.npz"
        path.write_bytes(b"before")
        with pytest.raises(SerializationError, match="save: value"):
            md.save(path, value=value)
        assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["x.npz"]

    def test_an_unbuilt_model(self, tmp_path):
        with pytest.raises(BuildError, match="0, 2"):
            md.save(
                tmp_path / "x.npz", model=Sequential([Dense(2), Dense(2, input_size=2), Dense(1)])
            )
        assert os.listdir(tmp_path) == []

    def test_objects_that_are_not_there_or_have_no_state(self, tmp_path):
        path = tmp_path / "x.npz"
        md.save(path, step=1)
        with pytest.raises(SerializationError, match="holds step, not model"):
            md.load(path, model=Dense(2, input_size=1))
        with pytest.raises(
            SerializationError, match="step: expected an object with load_state_dict"
        ):
            md.load(path, step=5)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            md.load(tmp_path / "x.npz")


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "x.npz"
        md.save(path, a=np.arange(50.0), text="word")
        return path

    def test_truncated_anywhere(self, path):
        whole = path.read_bytes()
        for size in range(0, len(whole), 17):
            path.write_bytes(whole[:size])
            with pytest.raises(SerializationError):
                md.load(path)

    def test_a_flipped_bit_anywhere_changes_nothing_or_raises(self, path):
        whole, expected = path.read_bytes(), md.load(path)
        for position in range(0, len(whole), 5):
            spoiled = bytearray(whole)
            spoiled[position] ^= 1
            path.write_bytes(bytes(spoiled))
            try:
                contents = md.load(path)
            except SerializationError:
                continue
            np.testing.assert_array_equal(contents["a"], expected["a"])
            assert contents["text"] == "word"

    def test_foreign_files(self, tmp_path):
        path = tmp_path / "x.npz"
        np.savez(path, a=np.ones(3))
        with pytest.raises(SerializationError, match=r"not written by md\.save"):
            md.load(path)
        path.write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(SerializationError, match="damaged, or no file"):
            md.load(path)

    def test_pickles_inside_are_not_run(self, tmp_path):
        path = tmp_path / "x.npz"
        np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "evil.npy", "a.npy")
            document = {"format": 1, "contents": {"a": {"$array": "a"}}}
            archive.writestr("minidl.json", json.dumps(document))
        with pytest.raises(SerializationError):
            md.load(path)
        assert not Evil.ran

    def test_another_format(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("minidl.json", json.dumps({"format": 99, "contents": {}}))
        with pytest.raises(SerializationError, match="of format 99"):
            md.load(path)


class Evil:
    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    Evil.ran = True


class TestAtomic:
    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "x.npz"
        md.save(path, step=1)

        def fail(*args, **kwargs):
            raise OSError("disk full")

        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(serialization.os, name, fail)
                with pytest.raises(OSError, match="disk full"):
                    md.save(path, step=2)
            assert md.load(path)["step"] == 1 and os.listdir(tmp_path) == ["x.npz"]

    def test_synced_before_it_is_renamed(self, tmp_path, monkeypatch):
        events = []
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(
                serialization.os, name, lambda *a, n=name, r=real: (events.append(n), r(*a))[1]
            )
        md.save(tmp_path / "x.npz", step=1)
        assert events[:2] == ["fsync", "replace"]

    def test_bare_name_in_the_current_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        md.save("x.npz", step=1)
        assert md.load("x.npz") == {"step": 1}
