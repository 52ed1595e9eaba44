"""Record a sequence of kernel calls once, replay it in one: CUDA graphs, for the CPU.

A decode step of a small model is some 270 kernel calls, and Python spends 2 ms on making them:
a fifth of the step. While `capture` is active every native kernel runs and is noted down with its
arguments; `Graph.replay` runs the list again without Python. As with a CUDA graph, whatever the
calls read from outside must lie at the same address every time: static buffers, filled anew.

Memory of intermediate results comes from a pool that all graphs share (they never run at once). A
block goes back to the pool when the tensor that holds it dies, so a function must not return a
view of a tensor it made.
"""

from __future__ import annotations

import ctypes
import math
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from turret_kernels import native

# In the order of the switch in native/graph.cpp.
KERNELS = (
    "linear",
    "low_rank",
    "rope_and_store",
    "paged_attention",
    "rms_norm",
    "act_mul",
    "act_threshold_mul",
    "threshold",
    "offset",
    "scale",
    "sparse_delta",
    "row_delta",
    "sparse_mlp",
    "rotate",
    "linear_int8",
)
_MAX_ARGUMENTS = 19


class _Call(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_int64), ("arguments", ctypes.c_int64 * _MAX_ARGUMENTS))


class MemoryPool:
    """Blocks for the intermediate results of captured calls, reused as tensors die."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the smallest free block that holds it."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [i for i, block in enumerate(self._free) if block.nbytes >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda i: self._free[i].nbytes))
        else:
            block = torch.empty(1 << max(12, (size - 1).bit_length()), dtype=torch.uint8)
        tensor = block[:size].view(dtype).view(shape)
        weakref.finalize(tensor, self._free.append, block)
        return tensor


class Graph:
    """A recorded list of calls."""

    def __init__(self, calls: list[tuple[int, tuple[Any, ...]]]) -> None:
        self._count = len(calls)
        self._tables = [value for _, arguments in calls for value in arguments if _is_table(value)]
        self._calls = (_Call * self._count)()
        for slot, (kernel, arguments) in zip(self._calls, calls, strict=True):
            slot.kernel = kernel
            slot.arguments[: len(arguments)] = [_bits(value) for value in arguments]

    def replay(self) -> None:
        """Run all calls in order."""
        assert native.lib is not None
        native.lib.turret_run(self._calls, self._count)


class Recorder:
    """Records steps into graphs that share their intermediate memory: they never run at once."""

    def __init__(self) -> None:
        self._pool = MemoryPool()

    def record(
        self, prepare: Callable[[], None], run: Callable[[], Tensor]
    ) -> tuple[Graph, Tensor]:
        """Record `run`, and run it once.

        Args:
            prepare: fills what `run` reads and changes; called before every run.
            run: the step; reads and writes at the same addresses every time.

        Returns:
            The graph, and where its result lies until another graph runs.
        """
        prepare()
        with capture(self._pool) as calls:
            # A view: when the tensor itself dies its block is free for other graphs, whose steps
            # come after this result was used.
            out = run()
            out = out.view(out.shape)
        return Graph(calls), out


@contextmanager
def capture(pool: MemoryPool) -> Iterator[list[tuple[int, tuple[Any, ...]]]]:
    """Run and record every native kernel called inside; give the list to `Graph`.

    Raises:
        RuntimeError: a torch op that computes something ran inside; it would be missing later.
    """
    calls: list[tuple[int, tuple[Any, ...]]] = []
    library = native.lib
    assert library is not None
    originals = {name: getattr(library, f"turret_{name}") for name in KERNELS}

    def recorder(index: int, kernel: Any) -> Any:
        def record(*arguments: Any) -> None:
            calls.append((index, tuple(_keep(value) for value in arguments)))
            kernel(*arguments)

        return record

    for index, (name, kernel) in enumerate(originals.items()):
        setattr(library, f"turret_{name}", recorder(index, kernel))
    native.allocate = pool.empty
    try:
        with _OnlyViews():
            yield calls
    finally:
        native.allocate = native.torch_empty
        for name, kernel in originals.items():
            setattr(library, f"turret_{name}", kernel)


class _OnlyViews(TorchDispatchMode):
    """Refuses torch ops that compute: a replay would leave them out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (list, tuple)) else [out]
        made = [t for t in tensors if isinstance(t, Tensor)]
        if func is torch.ops.aten.empty.memory_format or _are_views(made, args):
            return out
        raise RuntimeError(f"{func} is not a native kernel and cannot be captured")


def _are_views(made: list[Tensor], args: Any) -> bool:
    source = next((a for a in args if isinstance(a, Tensor)), None)
    if source is None:
        return False
    storage = source.untyped_storage().data_ptr()
    is_same = all(t is not source and t.untyped_storage().data_ptr() == storage for t in made)
    return bool(made) and is_same


def _is_table(value: Any) -> bool:
    return isinstance(value, ctypes.Array)


def _keep(value: Any) -> Any:
    """A table's owner points it elsewhere for every eager step: the graph keeps it as it is now."""
    return type(value).from_buffer_copy(value) if _is_table(value) else value


def _bits(value: Any) -> int:
    if _is_table(value):
        return ctypes.addressof(value)
    if isinstance(value, float):
        return struct.unpack("<i", struct.pack("<f", value))[0]
    return int(value or 0)
