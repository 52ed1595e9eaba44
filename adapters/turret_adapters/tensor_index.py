"""The header of a safetensors file from a stranger: which tensors there are, and where they lie."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

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
FIX = "Copy or download it again, or save it again with safetensors."
_MAX_DIMS = 8
# Adapters of one recipe have one header, byte for byte: it is parsed and checked once.
_CACHED_HEADERS, _CACHED_HEADER_BYTES = 32, 1 << 18


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


@dataclass(frozen=True, eq=False)
class Index:
    """What a header says. Files with the same header may share one, so it is never changed.

    Attributes:
        infos: every tensor, by name.
        metadata: the strings that the writer left beside the tensors.
    """

    infos: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """Of all tensors; None where they differ, or there are none."""
        dtypes = {info.dtype for info in self.infos.values()}
        return dtypes.pop() if len(dtypes) == 1 else None

    @cached_property
    def names(self) -> list[str]:
        """Of the tensors, sorted."""
        return sorted(self.infos)

    @cached_property
    def listing(self) -> bytes:
        """Names, dtypes and shapes, whatever the order in the file: what a digest covers."""
        entries = ((key, self.infos[key]) for key in self.names)
        return json.dumps([[key, str(info.dtype), info.shape] for key, info in entries]).encode()


def read_index(text: bytes, name: str, size: int, max_tensors: int) -> Index:
    """Check a header against its file.

    Args:
        text: the header's JSON; it begins behind 8 bytes of length, and the data follow it.
        name: of the file, for messages.
        size: of the file in bytes.
        max_tensors: most tensors that are listed.

    Raises:
        AdapterMalformed: the header contradicts itself or the file.
        AdapterUnsupported: a dtype that adapters do not use.
    """
    read = _cached if len(text) <= _CACHED_HEADER_BYTES else _read
    return read(text, name, size, max_tensors)


def _read(text: bytes, name: str, size: int, max_tensors: int) -> Index:
    # Nesting: the object, an entry, its list of numbers.
    header = parse_object(text, f"the header of {name!r}", max_depth=3)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise _malformed(name, "its __metadata__ is no object of strings")
    if len(header) > max_tensors:
        raise _malformed(name, f"it lists {len(header)} tensors, more than {max_tensors}")
    data_start = position = 8 + len(text)
    infos = {key: _check(key, entry, name, data_start, size) for key, entry in header.items()}
    for key, info in sorted(infos.items(), key=lambda x: (x[1].start, x[1].num_bytes)):
        if info.start != position:
            kind = "overlaps another tensor" if info.start < position else "leaves a gap"
            raise _malformed(
                name,
                f"{quote(key)} starts at data byte {info.start - data_start} and {kind}: "
                f"expected {position - data_start}",
            )
        position += info.num_bytes
    if position != size:
        raise _malformed(
            name, f"its tensors end at byte {position} but the file is {size} bytes long"
        )
    return Index(infos, metadata)


_cached = lru_cache(maxsize=_CACHED_HEADERS)(_read)


def _check(key: str, entry: Any, name: str, data_start: int, size: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(
            name, f"the entry {quote(key)} does not consist of dtype, shape and data_offsets"
        )
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise AdapterUnsupported(
            f"{name!r} was refused",
            f"the dtype of {quote(key)} is {quote(dtype_name)}; adapters use {', '.join(DTYPES)}",
            "Save the adapter in float32, float16 or bfloat16.",
        )
    if not _counts(shape) or len(shape) > _MAX_DIMS:
        raise _malformed(name, f"the shape of {quote(key)} is {quote(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(name, f"the data_offsets of {quote(key)} are {quote(offsets)}")
    start, end = offsets
    if end > size - data_start:
        raise _malformed(
            name,
            f"{quote(key)} ends at data byte {end}, the file holds {size - data_start}: "
            "it is truncated",
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes != end - start:
        raise _malformed(
            name,
            f"{quote(key)} of shape {quote(shape)} and dtype {dtype_name} takes "
            f"{quote(num_bytes)} bytes, its data_offsets span {end - start}",
        )
    return TensorInfo(dtype, tuple(shape), data_start + start, num_bytes)


def _counts(value: Any) -> bool:
    """A list of int64 counts; `type is int` because True is an int, too."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 63 for x in value)


def _malformed(name: str, why: str) -> AdapterMalformed:
    return AdapterMalformed(f"{name!r} was refused", why, FIX)
