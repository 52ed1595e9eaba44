"""Arrays that are filled on the host at every step, and where the device reads them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


class Staging:
    """Named arrays in one block of memory, sent in one transfer.

    On a CPU the device's tensors *are* the host's arrays, and nothing is sent. Neither ever moves,
    so a recorded graph finds the inputs of every step where it found those of the first.

    Args:
        arrays: shape and dtype by name, in the order in which they lie in memory.
        device: where they are read.

    Attributes:
        host: by name, to be filled.
        device: by name, to be read.
    """

    def __init__(
        self, arrays: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        self._ends: dict[str, int] = {}
        begin, begins = 0, {}
        for name, (shape, dtype) in arrays.items():
            begins[name] = begin
            self._ends[name] = begin + int(np.prod(shape)) * dtype.itemsize
            begin = -(-self._ends[name] // _ALIGNMENT) * _ALIGNMENT
        pinned = device.type == "cuda"
        self._host = torch.zeros(begin, dtype=torch.uint8, pin_memory=pinned)
        self._sent = torch.cuda.Event() if pinned else None
        self._device = self._host if device.type == "cpu" else self._host.to(device)

        def view(block: Tensor, name: str) -> Tensor:
            shape, dtype = arrays[name]
            return block[begins[name] : self._ends[name]].view(dtype).view(shape)

        self.host: dict[str, np.ndarray] = {n: view(self._host, n).numpy() for n in arrays}
        self.device: dict[str, Tensor] = {n: view(self._device, n) for n in arrays}

    def send(self, last: str, rows: int | None = None) -> None:
        """Let the device see every array up to `last`, and of that one so many rows.

        The host's arrays may be filled again after `wait`.
        """
        if self._device is self._host:
            return
        end = self._ends[last]
        if rows is not None:
            array = self.host[last]
            end += (rows - array.shape[0]) * array[:1].nbytes
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def wait(self) -> None:
        """Until the device has what was sent: soon, since it finished the step before that."""
        if self._sent is not None:
            self._sent.synchronize()
