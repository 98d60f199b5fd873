"""The benchmarks run and agree in form; nothing here asserts a time."""

import json
import math

import pytest

from benchmarks import measure, registry
from benchmarks.__main__ import main

MINIDLS = [w for w in registry.workloads() if "minidl" in registry.systems_of(w)]


def test_rows_of_a_quick_run(tmp_path, capsys):
    file = tmp_path / "rows.json"
    main(["--only", "W8 chain of 200", "--systems", "minidl", "--quick", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert row["workload"] == "W8 chain of 200" and row["system"] == "minidl"
    assert row["median_ms"] > 0 and row["peak_mib"] > 10 and row["pairs"] == 1
    assert row["ratio_to_pytorch"] is None and row["spread"] is None
    assert "W8 chain of 200" in capsys.readouterr().out


def test_a_group_of_workloads_goes_by_its_first_word():
    groups = {name.split()[0] for name in registry.workloads()}
    assert groups >= {"W1", "W1c", "W1v", "W3", "W8"}


def test_an_unknown_workload_is_refused():
    with pytest.raises(SystemExit, match="W1c"):
        main(["--only", "W99"])


@pytest.mark.parametrize("workload", MINIDLS)
def test_minidl_does_each_workload(workload):
    assert math.isfinite(float(registry.find(workload, "minidl")()(1)))


@pytest.mark.parametrize("system", ["autograd", "mygrad"])
def test_systems_do_the_same_work(system):
    pytest.importorskip(system)
    for workload in ("W8 elementwise x100", "W8 chain of 200", "W8 perceptron x10"):
        ours, theirs = (registry.find(workload, s)()(1) for s in ("minidl", system))
        assert float(theirs) == pytest.approx(float(ours), rel=measure.AGREEMENT)


def test_ratios_are_of_neighbouring_bursts():
    kept = {("minidl", "pytorch"): [(1.0, 2.0), (3.0, 4.0), (9.0, 10.0)]}

    class Worker:
        peak_mib = 7.0

    row = measure._row("W", "minidl", Worker(), kept)
    assert row["median_ms"] == 3.0 and row["ratio_to_pytorch"] == 0.75 and row["pairs"] == 3
    row = measure._row("W", "pytorch", Worker(), kept)
    assert row["median_ms"] == 4.0 and row["ratio_to_pytorch"] == 1.0


def test_pairs_under_load_are_thrown_away(monkeypatch):
    monkeypatch.setattr(measure, "_busy", lambda: 0.0)  # whatever this machine does now

    class Worker:
        def __init__(self, bursts):
            self.bursts = iter(bursts)

        def burst(self):
            return measure.Burst(*next(self.bursts))

    workers = {
        "minidl": Worker([(1.0, True), (9.0, False), (1.5, True)]),
        "pytorch": Worker([(2.0, True), (2.0, True), (3.0, True)]),
    }
    settings = measure.Settings(pairs=2, patience=60.0)
    pair = ("minidl", "pytorch")
    kept = measure._rounds(workers, [pair], settings)
    assert kept == {pair: [(1.0, 2.0), (1.5, 3.0)]}


def test_different_work_is_refused():
    class Worker:
        def __init__(self, name, value):
            self.name, self.value = name, value

    measure._check_agreement({"a": Worker("a", 1.0), "b": Worker("b", 1.0001)})
    with pytest.raises(RuntimeError, match="not the same work"):
        measure._check_agreement({"a": Worker("a", 1.0), "b": Worker("b", 1.1)})
