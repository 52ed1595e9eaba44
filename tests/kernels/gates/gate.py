"""What a kernel may compile to, and what it did compile to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """One launch of one kernel at a size that matters, and its limits on every target.

    No limit is needed for spilled registers: there may be none.

    Attributes:
        size: what the launch is, in a word or two; the table shows it beside the kernel's name.
        launch: calls the function in `turret_kernels.gpu` with meta tensors (`meta`), so that what
            is compiled is what a server launches. Where it launches several kernels, `kernel` says
            which is meant.
        registers: most per thread; about a quarter above what triton 3.9 needs (others need more).
        shared: most bytes of shared memory.
        narrow: most loads and stores of global memory below 16 bytes, counted in the code and not
            as they run: indices and scalars, never a tensor's rows.
        tensor_cores: the kernel multiplies matrices, and must do it there.
        kernel: name of the kernel, where the launch has several.
    """

    size: str
    launch: Callable[[], object]
    registers: int
    shared: int = 0
    narrow: int = 0
    tensor_cores: bool = False
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one kernel compiled to.

    Attributes:
        kernel: its name.
        registers: per thread.
        stack: bytes per thread; anything but 0 is spilled registers.
        shared: bytes of shared memory.
        wide_loads: of global memory by 16 bytes or more, asynchronous copies among them.
        loads: of global memory, all.
        wide_stores: by 16 bytes or more.
        stores: all.
        tensor_cores: matrix instructions.
        fp_fusion: a * b + c is one instruction.
    """

    kernel: str
    registers: int
    stack: int
    shared: int
    wide_loads: int
    loads: int
    wide_stores: int
    stores: int
    tensor_cores: int
    fp_fusion: bool

    @property
    def narrow(self) -> int:
        """Loads and stores below 16 bytes."""
        return self.loads - self.wide_loads + self.stores - self.wide_stores


@dataclass(frozen=True, slots=True)
class AmdReport:
    """What one kernel compiled to for an AMD GPU, whose warps have 64 threads.

    Attributes:
        kernel: its name.
        registers: vector registers per thread; at most 512.
        spills: vector registers that are not.
        scratch: bytes per thread in memory; anything but 0 is spilled registers too.
        shared: bytes of shared memory.
        wide_loads: of global memory, by 16 bytes.
        loads: of global memory, all.
        tensor_cores: matrix instructions.
    """

    kernel: str
    registers: int
    spills: int
    scratch: int
    shared: int
    wide_loads: int
    loads: int
    tensor_cores: int
