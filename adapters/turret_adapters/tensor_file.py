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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, quote
from turret_adapters.strict_json import parse_object

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_MAX_DIMS = 8
_CHUNK_BYTES = 1 << 20
_CACHED_BYTES = 64 << 20  # files up to this size are read at once
# A sample is so many pieces of so many elements each; a tensor with fewer is taken whole.
_SAMPLE_PIECES, _SAMPLE_SIZE = 64, 2048
_FIX = "Copy or download it again, or save it again with safetensors."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies, as the checked header says.

    Attributes:
        dtype: of the stored elements.
        shape: as stored.
        start: first byte in the file.
        num_bytes: length in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class TensorFile:
    """Lazy access to the tensors of an open safetensors file.

    Args:
        file: open for reading, unbuffered; closed by its owner.
        name: file name, for messages.
        size: length of the file in bytes.
        max_header_bytes: longest header that is parsed.
        max_tensors: most tensors that are listed.

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
        header, data_start = self._read_header(size, max_header_bytes)
        self._metadata: dict[str, str] = header.pop("__metadata__", {})
        if len(header) > max_tensors:
            raise self._malformed(f"it lists {len(header)} tensors, more than {max_tensors}")
        self._infos = self._check_entries(header, data_start, size)
        self._start, self._size = data_start, size

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
        dtypes = {info.dtype for info in self._infos.values()}
        if self._block is None or len(dtypes) != 1:
            return math.nan
        (dtype,) = dtypes
        if not dtype.is_floating_point or not self._block.numel():
            return math.nan
        # Tensors of one dtype fill the data without gaps, so all of it is one tensor.
        least, most = torch.aminmax(self._block.view(dtype))
        return float(torch.maximum(-least, most))

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor, by name."""
        return self._infos

    @property
    def metadata(self) -> dict[str, str]:
        """The strings that the writer left beside the tensors."""
        return self._metadata

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in its stored dtype.

        Raises:
            AdapterMalformed: the file became shorter since it was opened.
        """
        info = self._infos[name]
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
        info = self._infos[name]
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
            info = self._infos[name]
            start = info.start - self._start
            if start != last:
                yield self._data[first:last]
                first = start
            last = start + info.num_bytes
        yield self._data[first:last]

    def sample(self, name: str) -> Tensor:
        """The elements of a tensor at `sample_ranges`, one after the other, in its stored dtype."""
        info = self._infos[name]
        pieces = [bytes(piece) for piece in self.sample_chunks(name)]
        buffer = bytearray(b"".join(pieces))
        return (
            torch.frombuffer(buffer, dtype=info.dtype)
            if buffer
            else torch.empty(0, dtype=info.dtype)
        )

    def sample_chunks(self, name: str) -> Iterator[memoryview]:
        """The raw bytes of the same, piece by piece; a piece is valid until the next is drawn."""
        info = self._infos[name]
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

    def _read_header(self, size: int, max_header_bytes: int) -> tuple[dict[str, Any], int]:
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
        # Nesting: the object, an entry, its list of numbers.
        header = parse_object(bytes(text), f"the header of {self.name!r}", max_depth=3)
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise self._malformed("its __metadata__ is no object of strings")
        return header, 8 + length

    def _check_entries(
        self, header: dict[str, Any], data_start: int, size: int
    ) -> dict[str, TensorInfo]:
        infos: dict[str, TensorInfo] = {}
        for name, entry in header.items():
            infos[name] = self._check_entry(name, entry, data_start, size)
        position = data_start
        for name, info in sorted(infos.items(), key=lambda x: (x[1].start, x[1].num_bytes)):
            if info.start != position:
                kind = "overlaps another tensor" if info.start < position else "leaves a gap"
                raise self._malformed(
                    f"{quote(name)} starts at data byte {info.start - data_start} and {kind}: "
                    f"expected {position - data_start}"
                )
            position += info.num_bytes
        if position != size:
            raise self._malformed(
                f"its tensors end at byte {position} but the file is {size} bytes long"
            )
        return infos

    def _check_entry(self, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._malformed(
                f"the entry {quote(name)} does not consist of dtype, shape and data_offsets"
            )
        dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
        if dtype is None:
            raise AdapterUnsupported(
                f"{self.name!r} was refused",
                f"the dtype of {quote(name)} is {quote(dtype_name)}; adapters use "
                f"{', '.join(DTYPES)}",
                "Save the adapter in float32, float16 or bfloat16.",
            )
        if not _counts(shape) or len(shape) > _MAX_DIMS:
            raise self._malformed(f"the shape of {quote(name)} is {quote(shape)}")
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._malformed(f"the data_offsets of {quote(name)} are {quote(offsets)}")
        start, end = offsets
        if end > size - data_start:
            raise self._malformed(
                f"{quote(name)} ends at data byte {end}, the file holds {size - data_start}: "
                "it is truncated"
            )
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes != end - start:
            raise self._malformed(
                f"{quote(name)} of shape {quote(shape)} and dtype {dtype_name} takes "
                f"{quote(num_bytes)} bytes, its data_offsets span {end - start}"
            )
        return TensorInfo(dtype, tuple(shape), data_start + start, num_bytes)

    def _malformed(self, why: str) -> AdapterMalformed:
        return AdapterMalformed(f"{self.name!r} was refused", why, _FIX)


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


def _counts(value: Any) -> bool:
    """A list of int64 counts; `type is int` because True is an int, too."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 63 for x in value)
