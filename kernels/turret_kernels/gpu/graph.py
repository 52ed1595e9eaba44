"""CUDA graphs: a decode step in one launch. The CPU's counterpart is `turret_kernels.graph`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorder:
    """Records steps into graphs that share their intermediate memory: they never run at once."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(
        self, prepare: Callable[[], None], run: Callable[[], Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record `run`, and run it once.

        Args:
            prepare: fills what `run` reads and changes; called before every run.
            run: the step; reads and writes at the same addresses every time.

        Returns:
            The graph, and where its result lies until another graph runs.
        """
        # Outside of the graph first: kernels are compiled, libraries load theirs.
        prepare()
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the one that loads adapters goes on.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = run()
        self._pool = self._pool or graph.pool()
        prepare()
        graph.replay()
        return graph, out
