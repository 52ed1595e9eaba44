"""One safetensors file from a stranger: its header is checked against the file before it is used.

Layout: 8 bytes little-endian header length N, N bytes JSON `{name: {dtype, shape, data_offsets}}`,
then the data, which the tensors must cover exactly once and without gaps.

Tensors are read, not mapped: if the owner truncates a mapped file while it is read, the kernel
kills the process (SIGBUS); a short read is an error of this adapter alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from turret_adapters.errors import AdapterMalformed, quote
from turret_adapters.tensor_index import FIX, Index, TensorInfo, read_index

# Every piece gives up the interpreter twice, which a busy server gives back after 5 ms.
_CHUNK_BYTES = 16 << 20
_CACHED_BYTES = 64 << 20  # files up to this size are read at once
# A sample is so many pieces of so many elements each; a tensor with fewer is taken whole.
_SAMPLE_PIECES, _SAMPLE_SIZE = 64, 2048


class TensorFile:
    """Lazy access to the tensors of an open safetensors file.

    Args:
        file: open for reading, unbuffered; closed by its owner.
        name: file name, for messages.
        size: length of the file in bytes.
        max_header_bytes: longest header that is parsed.
        max_tensors: most tensors that are listed.

    Attributes:
        name: as given.
        index: what the header says.

    Raises:
        AdapterMalformed: the header contradicts itself or the file.
        AdapterUnsupported: a dtype that adapters do not use.
    """

    _start, _size = 0, _CACHED_BYTES + 1  # of formats whose data is not one block: never cached

    def __init__(
        self, file: io.FileIO, name: str, size: int, *, max_header_bytes: int, max_tensors: int
    ):
        self.name = name
        self._file = file
        self.index, self._start = self._read_index(size, max_header_bytes, max_tensors)
        self._size = size

    @cached_property
    def _block(self) -> Tensor | None:
        """All data (uint8), read at once, if it is not too much.

        A call per tensor costs more than copying; every call into the system also gives up the
        interpreter, which on a busy server is back only after somebody else's turn.
        """
        if self._size - self._start > _CACHED_BYTES:
            return None
        block = torch.empty(self._size - self._start, dtype=torch.uint8)
        self._read_into(block.numpy().data, self._start, "the data")
        return block

    @cached_property
    def _data(self) -> memoryview | None:
        """The same for readers of bytes."""
        return None if self._block is None else self._block.numpy().data

    @cached_property
    def largest(self) -> float:
        """Largest magnitude in the file, NaN and infinity included; NaN if that is not cheap."""
        values = self.values
        if values is None or not values.dtype.is_floating_point or not values.numel():
            return math.nan
        least, most = torch.aminmax(values)
        return float(torch.maximum(-least, most))

    @property
    def values(self) -> Tensor | None:
        """All elements in the order of the data, if they are of one dtype and not too many."""
        if self._block is None or self.index.dtype is None:
            return None
        # Tensors fill the data without gaps, so all of it is one tensor.
        return self._block.view(self.index.dtype)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor, by name. Not to be changed: files with the same header share it."""
        return self.index.infos

    @property
    def metadata(self) -> dict[str, str]:
        """The strings that the writer left beside the tensors."""
        return self.index.metadata

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in its stored dtype.

        Raises:
            AdapterMalformed: the file became shorter since it was opened.
        """
        info = self.index.infos[name]
        if self._block is not None:
            first = info.start - self._start
            # A copy of its own: aligned, and it does not keep the rest of the file.
            buffer = self._block[first : first + info.num_bytes].clone()
        else:
            buffer = torch.empty(info.num_bytes, dtype=torch.uint8)
            self._read_into(buffer.numpy().data, info.start, name)
        return buffer.view(info.dtype).reshape(info.shape)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The raw bytes of a tensor, piece by piece; a piece is valid until the next is drawn."""
        info = self.index.infos[name]
        if self._data is not None:
            first = info.start - self._start
            yield self._data[first : first + info.num_bytes]
            return
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, info.num_bytes)))
        for offset in range(0, info.num_bytes, _CHUNK_BYTES):
            piece = buffer[: min(_CHUNK_BYTES, info.num_bytes - offset)]
            self._read_into(piece, info.start + offset, name)
            yield piece

    def all_chunks(self, names: Sequence[str]) -> Iterator[memoryview]:
        """The raw bytes of several tensors, in this order; neighbours in the file in one piece."""
        if self._data is None:
            for name in names:
                yield from self.chunks(name)
            return
        first = last = 0
        for name in names:
            info = self.index.infos[name]
            start = info.start - self._start
            if start != last:
                yield self._data[first:last]
                first = start
            last = start + info.num_bytes
        yield self._data[first:last]

    def sample(self, name: str) -> Tensor:
        """The elements of a tensor at `sample_ranges`, one after the other, in its stored dtype."""
        info = self.index.infos[name]
        pieces = [bytes(piece) for piece in self.sample_chunks(name)]
        buffer = bytearray(b"".join(pieces))
        return (
            torch.frombuffer(buffer, dtype=info.dtype)
            if buffer
            else torch.empty(0, dtype=info.dtype)
        )

    def sample_chunks(self, name: str) -> Iterator[memoryview]:
        """The raw bytes of the same, piece by piece; a piece is valid until the next is drawn."""
        info = self.index.infos[name]
        size = info.dtype.itemsize
        for first, last in sample_ranges(math.prod(info.shape)):
            piece = memoryview(bytearray((last - first) * size))
            self._read_into(piece, info.start + first * size, name)
            yield piece

    def _read_into(self, buffer: memoryview, start: int, name: str) -> None:
        try:
            self._file.seek(start)
            done = 0
            while done < len(buffer):
                count = self._file.readinto(buffer[done:])
                if not count:
                    raise self._malformed(f"it ended within {quote(name)}: it shrank while read")
                done += count
        except OSError as error:
            raise self._malformed(f"reading {quote(name)} failed ({error.strerror})") from error

    def _read_index(self, size: int, max_header_bytes: int, max_tensors: int) -> tuple[Index, int]:
        """What the header says, and where the data begin."""
        if size < 8:
            raise self._malformed(f"it is {size} bytes long; the header length alone takes 8")
        prefix = bytearray(8)
        self._read_into(memoryview(prefix), 0, "the header length")
        length = int.from_bytes(prefix, "little")
        if length > size - 8:
            raise self._malformed(
                f"its header claims {length} bytes, the file has {size - 8} after the length: "
                "it is truncated or no safetensors file"
            )
        if length > max_header_bytes:
            raise self._malformed(f"its header of {length} bytes exceeds {max_header_bytes}")
        text = bytearray(length)
        self._read_into(memoryview(text), 8, "the header")
        return read_index(bytes(text), self.name, size, max_tensors), 8 + length

    def _malformed(self, why: str) -> AdapterMalformed:
        return AdapterMalformed(f"{self.name!r} was refused", why, FIX)


def sample_ranges(count: int) -> list[tuple[int, int]]:
    """Which of `count` elements a sample takes: evenly spaced [start, stop), both ends in."""
    if count <= _SAMPLE_PIECES * _SAMPLE_SIZE:
        return [(0, count)] if count else []
    room = count - _SAMPLE_SIZE
    starts = [room * i // (_SAMPLE_PIECES - 1) for i in range(_SAMPLE_PIECES)]
    return [(start, start + _SAMPLE_SIZE) for start in starts]


def is_finite(tensor: Tensor) -> bool:
    """Does a floating-point tensor hold neither NaN nor infinity?

    Minimum and maximum propagate NaN, in a tenth of the time of `isfinite(tensor).all()`.
    """
    return tensor.numel() == 0 or all(math.isfinite(x.item()) for x in torch.aminmax(tensor))
