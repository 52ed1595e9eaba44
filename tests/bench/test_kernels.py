"""Cases of the kernels' benchmark: what is predicted of them, and that they are what they say."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench.kernels import timing
from bench.kernels.__main__ import main
from bench.kernels.case import Calls, Case
from bench.kernels.limits import CARDS, Limits
from bench.kernels.table import OPS, cases, measured_row, predictions
from torch import Tensor

ROOT = Path(__file__).parents[2]
TINY = [pytest.param(op, i, id=f"{op}-{i}") for op in OPS for i, _ in enumerate(cases(op, True))]


# A dense MLP has what CATS leaves out, native pages have an order of their own, and the search for
# a weight has no peer.
OTHERS = {"sparse_mlp", "paged_attention", "dynamic_weights"}


@pytest.mark.parametrize(("op", "number"), TINY)
def test_a_case_runs_and_does_what_its_peer_does(op: str, number: int) -> None:
    """Through the public functions, on the path that this machine has."""
    found: dict[str, list[object]] = {}
    for who in ("turret", "torch", "torch.bmm"):
        torch.manual_seed(0)
        calls = list(cases(op, True))[number].make("cpu", 2)
        found[who] = [call() for call in calls.get(who, [])]
    assert found["turret"]
    if op in OTHERS:
        return
    peer = found["torch"] or found["torch.bmm"]
    for ours, theirs in zip(found["turret"], peer, strict=True):
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        largest = theirs[theirs.isfinite()].abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=0.01 * largest, rtol=0.01, check_dtype=False)


def test_every_op_with_a_triton_kernel_is_here() -> None:
    files = (ROOT / "kernels/turret_kernels/gpu").glob("*.py")
    assert {path.stem for path in files if "num_warps=" in path.read_text()} == set(OPS)


def test_the_table_shows_every_case_with_its_arithmetic() -> None:
    lines = predictions(OPS).splitlines()
    for op in OPS:
        for case in cases(op):
            (line,) = [line for line in lines if line.startswith(f"| {op} | {case.name} |")]
            assert case.arithmetic in line


def test_without_a_gpu_it_says_that_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.kernels", "--op", "norms"])
    main()
    printed = capsys.readouterr().out
    assert "| norms | norm, 8x4096 |" in printed
    assert "activation" not in printed
    assert "Nothing was measured" in printed


def test_a_prediction_adds_launches_the_floor_and_what_is_read_again() -> None:
    limits = Limits(bytes_per_us=100.0, l2_bytes_per_us=400.0, flop_per_us=10.0, launch_us=2.0)
    sizes = {"x": (2, 50), "out": (100,)}
    case = Case("two", sizes, lambda *_: {}, launches=3, share=0.5, flop=10, cached={"x": (800,)})
    assert case.bytes == 200
    assert case.arithmetic == "x 2·50 + out 100; again x 800"
    assert limits.floor_us(case) == 2.0
    assert limits.predicted_us(case) == 3 * 2.0 + 2.0 / 0.5 + 800 / 400
    assert Limits(100.0, 400.0, 1.0, 2.0).floor_us(case) == 10.0  # now by its products


def test_the_bytes_of_some_known_cases() -> None:
    """An 8B model's residual norm moves 8 bytes per value; qkv at rank 16 has 590 kB."""
    by_name = {case.name: case for op in ("norms", "low_rank") for case in cases(op)}
    assert by_name["norm + residual, 64x4096"].bytes == 64 * 4096 * 8 + 4096 * 2
    assert by_name["qkv, 1 rows, 1 adapters, rank 16"].bytes == 393216 + 196608
    assert math.isclose(CARDS["H100"].bytes_per_us, 3.0e6, rel_tol=0.01)


def test_a_peer_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(calls: Calls) -> tuple[float, float]:
        for call in calls:
            call()
        return 5.0, 0.1

    def fail() -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(timing, "time_us", once)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    made: list[tuple[str, int]] = []

    def make(device: str, sets: int) -> dict[str, Calls]:
        made.append((device, sets))
        return {"turret": [lambda: None] * sets, "torch": [fail]}

    case = Case("one", {"x": (30 << 20,)}, make)
    row = timing.measure(case, CARDS["H100"])
    assert made == [("cuda", 7)]  # 200 MB in all, which no L2 holds
    assert row["times"] == {
        "turret": {"us": 5.0, "spread_us": 0.1},
        "torch": {"error": "RuntimeError: no such kernel"},
    }


def test_calls_are_recorded_on_the_stream_of_their_first_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SGLang keeps what it has prepared by stream, and refuses to prepare while it is recorded."""
    current: list[object] = []

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 0.002)
    for name, fake in {
        "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "stream": on,
        "current_stream": lambda: None,
        "synchronize": lambda: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": lambda graph, stream=None: on(stream),
        "Event": lambda enable_timing: event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    ran_on: list[object] = []
    assert timing.time_us([lambda: ran_on.append(current[-1])]) == (2.0, 0.0)
    warmed_up, recorded = ran_on
    assert recorded is warmed_up


def test_a_measured_row_has_the_ratio_to_each_peer() -> None:
    times = {"turret": {"us": 4.0}, "torch": {"us": 10.0}, "torch.compile": {"error": "no"}}
    row = {"op": "norms", "case": "x", "predicted_us": 3.0, "floor_us": 1.0, "times": times}
    text = measured_row(row)
    assert "torch 10.0 (2.50x), torch.compile failed" in text
    assert "( 25%)" in text
