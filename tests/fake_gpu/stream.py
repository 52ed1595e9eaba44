"""The tensors of the fake GPU, and what one thread has it do."""

from __future__ import annotations

import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
_INSIDE = torch.device("meta")
_HOST = torch.device("cpu")
# Their results are on the host, or as long as only the device knows.
_WAITS = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
_INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
_pinned: weakref.WeakSet[Any] = weakref.WeakSet()  # storages
_local = threading.local()


class OnGpu(Tensor):
    """A tensor of the GPU.

    torch's C++ is told that it is on `meta`, for which a torch without CUDA has all that it asks of
    a device; Python that it is on `cuda:0`.

    Attributes:
        memory: what it holds, on the host.
    """

    memory: Tensor
    device = property(lambda self: GPU)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, memory: Tensor) -> OnGpu:
        size, stride, offset = memory.size(), memory.stride(), memory.storage_offset()
        with torch.inference_mode(False):  # or views of others could not be told from new ones
            found = Tensor._make_wrapper_subclass(
                cls, size, strides=stride, storage_offset=offset, dtype=memory.dtype, device=_INSIDE
            )
        found.memory = memory
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a GPU that this thread has not been given")

    def data_ptr(self) -> int:
        """Where kernels find it."""
        return self.memory.data_ptr()

    def tolist(self) -> Any:
        """On the host, which waits for it."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnGpu({self.memory})"


class Stream(TorchDispatchMode):
    """What a thread has the GPU do: at once, but for copies between it and pinned memory.

    Those take until the thread waits: pinned memory must keep what is sent, and holds nonsense
    before it has what it receives.

    Attributes:
        log: "to device" and "to host" for every copy that the host does not wait for, "event" for
            every event that it waited for, and for every other wait the operation and its place.
        recorded: what replaying the graph that is being recorded does; None if none is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.recorded: list[Callable[[], Any]] | None = None
        self._copies: deque[Callable[[], None]] = deque()
        self._begun = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Everything that this thread does with torch meanwhile may use the GPU."""
        before = getattr(_local, "stream", None)
        _local.stream = self
        try:
            with _Constructor(), self:
                yield
        finally:
            _local.stream = before

    def launch(self, call: Callable[[], Any]) -> None:
        """Have kernels run, which find their tensors in the host's memory."""
        with _disable_current_modes():
            call()
        if self.recorded is not None:
            self.recorded.append(call)

    def mark(self) -> int:
        """For `wait`: all that was begun so far."""
        return self._begun

    def wait(self, mark: int | None = None) -> None:
        """Let what was begun before end; None for everything."""
        self._refuse_while_recording("a wait")
        last = self._begun if mark is None else mark
        with _disable_current_modes():
            while len(self._copies) > self._begun - last:
                self._copies.popleft()()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_to_inside, (args, kwargs or {}))
        if func.overloadpacket in (aten.pin_memory, aten._pin_memory):
            return _pin(args[0].clone())
        if kwargs.pop("pin_memory", False):
            return _pin(func(*args, **kwargs))
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, OnGpu) or _is_inside(x) for x in leaves):
            return func(*args, **kwargs)
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            found = self._copy(func, *args, **kwargs)
            if found is not None:
                return found
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        self._check(func, tensors, args)
        return self._run(func, tensors, args, kwargs)

    def _copy(self, func: Any, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Any:
        """A copy between the host and the device; None if it is none."""
        if func is aten.copy_.default:
            out, x, *rest = args
            non_blocking = rest[0] if rest else non_blocking
            to_gpu = isinstance(out, OnGpu)
        else:
            (x,), out = args, None
            to_gpu = kwargs.pop("device", x.device) in (_INSIDE, GPU)
        if to_gpu == isinstance(x, OnGpu):
            return None
        source = _memory(x)
        with _disable_current_modes():
            if out is None:
                found = aten._to_copy.default(source, **kwargs)
                out = OnGpu(found) if to_gpu else found
                if non_blocking and not to_gpu:
                    _pin(out)  # as torch does
            host, target = x if to_gpu else out, _memory(out)
            if not non_blocking or host.untyped_storage() not in _pinned:
                self._wait_for(f"{func} {'to' if to_gpu else 'from'} the device")
                target.copy_(source)
                return out
            self._refuse_while_recording("a copy of the host's memory")
            self.log.append("to device" if to_gpu else "to host")
            content = source.clone()
            if to_gpu:
                target.copy_(source)
                self._begin(lambda: _check_unchanged(source, content))
            else:
                _fill_with_nonsense(target)
                self._begin(lambda: target.copy_(content))
        return out

    def _begin(self, finish: Callable[[], Any]) -> None:
        self._copies.append(finish)
        self._begun += 1

    def _check(self, func: Any, tensors: list[Tensor], args: Any) -> None:
        """Log waits, and refuse operands on the host."""
        is_index = func.overloadpacket in _INDEXING
        strangers = [x for x in tensors if not isinstance(x, OnGpu) and x.dim()]
        if strangers and not is_index:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        is_masked = is_index and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if strangers or is_masked or func.overloadpacket in _WAITS:
            self._wait_for(str(func))

    def _run(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        given = {id(x.memory): x for x in tensors if isinstance(x, OnGpu)}
        args, kwargs = tree_map(_memory, (args, kwargs))
        found = func(*args, **kwargs)
        if self.recorded is not None:
            kept = tree_leaves(found)

            def again() -> None:
                for old, new in zip(kept, tree_leaves(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)

            self.recorded.append(again)

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return given[id(x)] if id(x) in given else OnGpu(x)

        return tree_map(wrap, found)

    def _wait_for(self, what: str) -> None:
        self.wait()
        self.log.append(f"{what} at {_place()}")

    def _refuse_while_recording(self, what: str) -> None:
        if self.recorded is not None:
            raise RuntimeError(f"{what} while a graph is recorded")


class _Constructor(TorchFunctionMode):
    """`torch.tensor(…, device="cuda")`, whose copy to the device no dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == "cuda":
            return torch.tensor(*args, **{**kwargs, "device": _HOST}).to(GPU)
        return func(*args, **kwargs)


def current() -> Stream:
    """This thread's."""
    return _local.stream


def memory_of(x: Any) -> Any:
    """The arguments of a launch as the host finds them.

    Raises:
        RuntimeError: one is on the host.
    """
    if isinstance(x, Tensor) and not isinstance(x, OnGpu):
        raise RuntimeError("a tensor of the host in the launch of a kernel")
    return _memory(x)


def _memory(x: Any) -> Any:
    if isinstance(x, OnGpu):
        return x.memory
    return _HOST if _is_inside(x) else x


def _is_inside(x: Any) -> bool:
    return isinstance(x, torch.device) and x == _INSIDE


def _to_inside(x: Any) -> Any:
    return _INSIDE if isinstance(x, torch.device) and x.type == "cuda" else x


def _fill_with_nonsense(x: Tensor) -> None:
    x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)


def _pin(x: Tensor) -> Tensor:
    _pinned.add(x.untyped_storage())
    return x


def _check_unchanged(memory: Tensor, content: Tensor) -> None:
    if not torch.equal(memory, content):
        raise RuntimeError("pinned memory was filled again before the copy from it had ended")


def _place() -> str:
    """The line of the product, or of a test, that torch was called from."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if frame.filename != __file__ and {"torch", "contextlib.py"}.isdisjoint(path.parts):
            return f"{path.name}:{frame.lineno}"
    return "?"
