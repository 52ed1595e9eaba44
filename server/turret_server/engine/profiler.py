"""Profiling the next steps of the engine: which operations took how long.

The profiler slows the steps that it watches. What it found is put together in a thread, so that
those who wait for tokens wait for the measurement alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from turret_server.engine.messages import OperationTime, Profiled, ProfileSteps

log = logging.getLogger("turret.engine")

_ROWS = 40
_MAX_TRACE_BYTES = 64 << 20


class StepProfiler:
    """Watches some steps, from its making until `after_step` says that it is done.

    Args:
        request: how many steps, and how long to wait for them.
        steps: that the engine had made.
        device: "cpu" or "cuda".
        phases: objects and methods that get lines of their own: what runs in a recorded graph, or
            in native code, is no operation of torch.
        folder: where a trace is written.
        done: called with the result, from another thread.
    """

    def __init__(
        self,
        request: ProfileSteps,
        steps: int,
        device: str,
        phases: list[tuple[object, str]],
        folder: Path,
        done: Callable[[Profiled], None],
    ) -> None:
        self._request, self._first, self._folder, self._done = request, steps, folder, done
        self._deadline = time.monotonic() + request.wait_s
        activities = [ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._phases = phases
        for owner, method in phases:
            setattr(owner, method, _named(f"turret::{method}", getattr(owner, method)))
        self._began = time.perf_counter()

    def after_step(self, steps: int) -> bool:
        """The engine has made so many steps; is that enough, or has it taken too long?"""
        seen = steps - self._first
        if seen < self._request.steps and time.monotonic() < self._deadline:
            return False
        for owner, method in self._phases:
            delattr(owner, method)
        seconds = time.perf_counter() - self._began
        try:
            self._profile.stop()
        except Exception as error:  # no step may end because it was watched
            self._done(not_profiled(self._request, error))
            return True
        work = threading.Thread(
            target=self._finish, args=(seen, seconds), name="profile", daemon=True
        )
        work.start()
        return True

    def _finish(self, steps: int, seconds: float) -> None:
        try:
            result = self._result(steps, seconds)
        except Exception as error:  # whoever asked must hear of it, or could never ask again
            result = not_profiled(self._request, error)
        self._done(result)

    def _result(self, steps: int, seconds: float) -> Profiled:
        rows = sorted(self._profile.key_averages(), key=_own_us, reverse=True)
        operations = [
            OperationTime(row.key, row.count, _own_us(row) / 1e6, _total_us(row) / 1e6)
            for row in rows[:_ROWS]
        ]
        path = self._write_trace() if self._request.trace and steps else ""
        return Profiled(self._request.operation, steps, seconds, operations, path)

    def _write_trace(self) -> str:
        """The path of the trace; "" where it is too large, or the disk does not take it."""
        file = self._folder / f"{self._request.operation}.json"
        try:
            self._profile.export_chrome_trace(str(file))
            if file.stat().st_size <= _MAX_TRACE_BYTES:
                return str(file)
            file.unlink()
        except (OSError, RuntimeError):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        return ""


def not_profiled(request: ProfileSteps, error: Exception) -> Profiled:
    """The answer where torch's profiler fails, which leaves a line in the log."""
    log.error("the steps were not profiled", exc_info=error)
    return Profiled(request.operation, 0, 0.0, [], problem=f"{type(error).__name__}: {error}")


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return named


def _own_us(row: Any) -> float:
    return row.self_device_time_total or row.self_cpu_time_total


def _total_us(row: Any) -> float:
    return row.device_time_total or row.cpu_time_total
