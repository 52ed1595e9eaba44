"""What the fake GPU puts in the place of torch's and Triton's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tests.fake_gpu.stream import Stream, current, memory_of
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from turret_kernels import gpu


class Event:
    """See `torch.cuda.Event`."""

    def __init__(self) -> None:
        self._mark = 0

    def record(self) -> None:
        """Remember what this thread has begun."""
        self._mark = current().mark()

    def synchronize(self) -> None:
        """Wait for that."""
        current().wait(self._mark)
        current().log.append("event")


class SideStream:
    """See `torch.cuda.Stream`; here a thread has but one stream."""

    def __init__(self, device: torch.device) -> None:
        del device

    def synchronize(self) -> None:
        """Wait for everything."""
        synchronize()


class CUDAGraph:
    """See `torch.cuda.CUDAGraph`.

    Attributes:
        replays: how often it was replayed.
    """

    def __init__(self) -> None:
        self.steps: list[Callable[[], Any]] = []
        self.replays = 0

    def pool(self) -> tuple[int, int]:
        """Its memory."""
        return 0, 0

    def replay(self) -> None:
        """Do what was recorded."""
        self.replays += 1
        with _disable_current_modes():
            for step in self.steps:
                step()


@contextmanager
def record(graph: CUDAGraph, *, pool: object = None, capture_error_mode: str) -> Iterator[None]:
    """See `torch.cuda.graph`. What is recorded is also run, which must not matter."""
    del pool, capture_error_mode
    stream = current()
    stream.recorded = graph.steps
    try:
        yield
    finally:
        stream.recorded = None


def synchronize() -> None:
    """See `torch.cuda.synchronize`."""
    current().wait()


CUDA = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "set_device": lambda device: None,
    "get_device_capability": lambda device: (9, 0),
    "Event": Event,
    "Stream": SideStream,
    "stream": nullcontext,
    "synchronize": synchronize,
    "CUDAGraph": CUDAGraph,
    "graph": record,
}


@contextmanager
def fake_gpu() -> Iterator[Stream]:
    """This thread, and those that it starts meanwhile, have a GPU. End them before.

    Memory that nobody wrote is full of NaN.

    Yields:
        What this thread has it do.
    """
    from triton.runtime.interpreter import GridExecutor

    assert gpu.INTERPRETED, "the fake GPU needs TRITON_INTERPRET=1"
    interpret, run_thread = GridExecutor.__call__, threading.Thread.run

    def launch(grid: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = tree_map(memory_of, (args, kwargs))
        current().launch(lambda: interpret(grid, *args, **kwargs))

    def run(thread: threading.Thread) -> None:
        with Stream().used():
            run_thread(thread)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CUDA.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(GridExecutor, "__call__", launch)
        patch.setattr(threading.Thread, "run", run)
        patch.setattr(gpu, "INTERPRETED", False)  # tensors of the host take the host's paths
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
        stream = Stream()
        try:
            with stream.used():
                yield stream
        finally:
            torch.use_deterministic_algorithms(before)
