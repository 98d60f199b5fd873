"""History: columns, files and state."""

import csv
import json

import numpy as np
import pytest

from minidl.training import History


@pytest.fixture
def history():
    history = History()
    history.append(0, {"loss": 2.0})
    history.append(1, {"loss": 1.0, "val_loss": 1.5})
    return history


def test_columns(history):
    assert history["loss"] == [2, 1] and history["val_loss"] == [None, 1.5]
    assert len(history) == 2 and "loss" in history and "f1" not in history
    with pytest.raises(KeyError, match="measured were loss, val_loss"):
        history["f1"]
    assert repr(history) == "History(2 epochs: loss=1, val_loss=1.5)"


def test_rows_are_of_plain_floats(tmp_path):
    """Whatever a callback adds: NumPy's numbers go into no JSON, and come back as arrays."""
    history = History()
    history.append(0, {"a": np.float32(0.5), "b": np.float64(2), "c": np.array(1)})
    assert [type(value) for value in history.rows[0].values()] == [float] * 3
    history.save(tmp_path / "x.json")


def test_json(history, tmp_path):
    history.save(tmp_path / "h.json")
    assert json.loads((tmp_path / "h.json").read_text()) == {
        "epoch": [0, 1], "loss": [2, 1], "val_loss": [None, 1.5],
    }  # fmt: skip


def test_csv(history, tmp_path):
    history.save(tmp_path / "h.csv")
    with open(tmp_path / "h.csv") as file:
        assert list(csv.reader(file)) == [
            ["epoch", "loss", "val_loss"], ["0", "2.0", ""], ["1", "1.0", "1.5"],
        ]  # fmt: skip
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        history.save(tmp_path / "h.txt")


def test_state(history):
    other = History()
    other.load_state_dict(json.loads(json.dumps(history.state_dict())))
    other.append(2, {"loss": 0.5})
    assert other.history == {"loss": [2, 1, 0.5], "val_loss": [None, 1.5, None]}
    assert len(history) == 2
