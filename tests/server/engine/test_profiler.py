from __future__ import annotations

import json
import queue

import pytest
import torch

from turret_server.engine.messages import ProfileSteps
from turret_server.engine.profiler import StepProfiler


class Part:
    """Something that a step calls."""

    def work(self, size):
        a = torch.ones(size, size)
        return float((a @ a).sum())


@pytest.fixture
def results():
    return queue.SimpleQueue()


def start(results, tmp_path, part, **fields):
    fields = {"operation": "p-1", "steps": 2, "wait_s": 60.0, **fields}
    phases = [(part, "work")]
    return StepProfiler(ProfileSteps(**fields), 10, "cpu", phases, tmp_path, results.put)


def test_operations_of_some_steps_are_told_with_their_phases(results, tmp_path):
    part = Part()
    profiler = start(results, tmp_path, part)
    assert part.work(8) == 8 * 8 * 8
    assert not profiler.after_step(11)
    part.work(size=8)
    assert profiler.after_step(12)
    found = results.get(timeout=30)
    assert (found.operation, found.steps, found.trace) == ("p-1", 2, "")
    operations = {operation.name: operation for operation in found.operations}
    assert operations["aten::mm"].calls == operations["turret::work"].calls == 2
    phase = operations["turret::work"]
    assert phase.total_s >= phase.own_s + operations["aten::mm"].own_s > 0
    own = [operation.own_s for operation in found.operations]
    assert own == sorted(own, reverse=True)
    assert "work" not in vars(part)  # nothing of the profiler is left behind


def test_a_trace_that_cannot_be_written_leaves_the_operations(results, tmp_path):
    part = Part()
    profiler = start(results, tmp_path / "nowhere", part, steps=1, trace=True)
    part.work(4)
    assert profiler.after_step(11)
    found = results.get(timeout=30)
    assert (found.steps, found.trace) == (1, "")
    assert found.operations


def test_a_trace_is_a_file_of_all_operations(results, tmp_path):
    part = Part()
    profiler = start(results, tmp_path, part, steps=1, trace=True)
    part.work(4)
    assert profiler.after_step(11)
    found = results.get(timeout=30)
    with open(found.trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::mm", "turret::work"} <= names


def test_a_trace_that_is_too_large_is_not_kept(results, tmp_path, monkeypatch):
    monkeypatch.setattr("turret_server.engine.profiler._MAX_TRACE_BYTES", 100)
    profiler = start(results, tmp_path, Part(), steps=1, trace=True)
    assert profiler.after_step(11)
    found = results.get(timeout=30)
    assert (found.steps, found.trace) == (1, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["stop", "key_averages"])
def test_what_fails_in_torch_is_told(results, tmp_path, monkeypatch, method):
    part = Part()
    profiler = start(results, tmp_path, part, steps=1)
    actual = getattr(profiler._profile, method)

    def fail():
        actual()
        raise RuntimeError("no events")

    monkeypatch.setattr(profiler._profile, method, fail)
    assert profiler.after_step(11)
    found = results.get(timeout=30)
    assert (found.operation, found.operations) == ("p-1", [])
    assert found.problem == "RuntimeError: no events"
    assert "work" not in vars(part)


def test_an_idle_engine_is_not_waited_for(results, tmp_path):
    profiler = start(results, tmp_path, Part(), wait_s=0.0, trace=True)
    assert profiler.after_step(10)
    found = results.get(timeout=30)
    assert (found.steps, found.trace) == (0, "")
