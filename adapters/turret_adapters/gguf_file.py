"""One GGUF file from a stranger, read as strictly as safetensors: ggml's container, version 2 or 3.

Layout, little-endian: "GGUF", u32 version, u64 tensors, u64 metadata entries; the entries (string
key, u32 type, value); the tensors (string name, u32 dimensions, u64 sizes, fastest first, u32 type,
u64 offset); then the data, from a multiple of `general.alignment` on. A string is a u64 length and
so many bytes of UTF-8. Only float32 and float16 tensors are read.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import torch

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, quote
from turret_adapters.tensor_file import TensorFile
from turret_adapters.tensor_index import Index, TensorInfo

_DTYPES = {0: torch.float32, 1: torch.float16}
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # ggml's own
_MAX_ALIGNMENT = 1 << 16
_FIX = "Copy or download it again, or export it again."


class GgufFile(TensorFile):
    """Lazy access to the tensors of an open GGUF file. Arguments and errors as for `TensorFile`.

    Attributes:
        fields: the metadata, by key; of an array only its length.
    """

    def __init__(
        self, file: io.FileIO, name: str, size: int, *, max_header_bytes: int, max_tensors: int
    ):
        self.name, self._file = name, file
        header = bytearray(min(size, max_header_bytes))
        self._read_into(memoryview(header), 0, "the header")
        reader = _Reader(bytes(header), self)
        if reader.take(4) != b"GGUF":
            raise self._malformed("it does not begin as a GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            raise self._malformed(f"its version is {version}; 2 and 3 are read")
        num_tensors, num_fields = reader.number("Q"), reader.number("Q")
        if num_tensors > max_tensors:
            raise self._malformed(f"it lists {num_tensors} tensors, more than {max_tensors}")
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):  # each takes bytes of the header, which end
            key = reader.string()
            if key in self.fields:
                raise self._malformed(f"it holds the key {quote(key)} twice")
            self.fields[key] = reader.value(reader.number("I"))
        entries = [reader.tensor() for _ in range(num_tensors)]
        self.index = Index(self._place(entries, reader.position, size))

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], position: int, size: int
    ) -> dict[str, TensorInfo]:
        """The tensors where they must lie: one after the other, each on a multiple."""
        alignment = self.fields.get("general.alignment", 32)
        is_power = type(alignment) is int and alignment > 0 and alignment & (alignment - 1) == 0
        if not is_power or alignment > _MAX_ALIGNMENT:
            raise self._malformed(f"its general.alignment is {quote(alignment)}")
        infos: dict[str, TensorInfo] = {}
        data_start = end = -(-position // alignment) * alignment
        for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
            dtype = _DTYPES.get(kind)
            if dtype is None:
                raise AdapterUnsupported(
                    f"{self.name!r} was refused",
                    f"{quote(name)} has ggml's type {kind}; float32 (0) and float16 (1) are read",
                    "Export it without quantisation.",
                )
            if name in infos:
                raise self._malformed(f"it holds two tensors {quote(name)}")
            start = -(-end // alignment) * alignment
            if data_start + offset != start:
                raise self._malformed(
                    f"{quote(name)} starts at data byte {offset}, expected {start - data_start}"
                )
            num_bytes = math.prod(shape) * dtype.itemsize
            end = start + num_bytes
            if end > size:
                raise self._malformed(
                    f"{quote(name)} ends at byte {end}, the file has {size}: it is truncated"
                )
            infos[name] = TensorInfo(dtype, shape, start, num_bytes)
        if entries and size - end >= alignment:
            raise self._malformed(f"its tensors end at byte {end}, the file has {size}")
        return infos

    def _malformed(self, why: str) -> AdapterMalformed:
        return AdapterMalformed(f"{self.name!r} was refused", why, _FIX)


class _Reader:
    """Numbers and strings of a header, never beyond its end."""

    def __init__(self, data: bytes, file: GgufFile):
        self._data, self._file = data, file
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise self._error("its header is truncated, or longer than headers may be")
        self.position += count
        return self._data[self.position - count : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error("it holds a name that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self._error(f"a metadata value has the unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[item]}"))
        elif item == _STRING:
            for _ in range(count):  # each takes at least the bytes of its length
                self.take(self.number("Q"))
        else:
            raise self._error(f"a metadata array holds the type {item}")
        return count

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (slowest first), ggml's type, offset."""
        name, num_dims = self.string(), self.number("I")
        if num_dims > _MAX_DIMS:
            raise self._error(f"{quote(name)} has {num_dims} dimensions")
        sizes = [self.number("Q") for _ in range(num_dims)]
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")

    def _error(self, why: str) -> AdapterMalformed:
        return self._file._malformed(why)
