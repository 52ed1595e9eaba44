"""One safetensors file that holds a compressed adapter, and its tensors as if they were stored.

The streams of all compressed tensors lie one after another in two U8 tensors, `compeft.places` and
`compeft.signs` (entries of their own would take more room than their bytes). A third U8 tensor,
`compeft.table`, is deflated JSON (zlib), a quarter of its plain size:

    {KEY: [shape, coder, nnz, rice_bits, bytes in places, scale, sha256]}

in the order of the streams: scale in hexadecimal floating point, sha256 of the decoded int8 values,
its first 16 digits. Tensors that are not compressed are stored as they are. The header's metadata
are strings:

    format    "turret-compeft"
    version   "2" ("1" held the table undeflated, in the metadata)
    rest      "0" or "1": what a value is where its bit is 0 (LoRA, (IA)3)
    config    the adapter's own adapter_config.json

A value is `rest + scale * {-1, 0, 1}`. The stored shape is a claim: kinds ask base and config what
a tensor must look like before they read it, and nothing is decoded, nor room for it made, before.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from turret_adapters.compress.codec import CODERS, Bytes, CodecError, Packed, decode, encode
from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME
from turret_adapters.strict_json import parse_object
from turret_adapters.tensor_file import TensorFile
from turret_adapters.tensor_index import Index, TensorInfo

CONTAINER_NAME = "adapter_model.compeft.safetensors"
FORMAT, VERSION = "turret-compeft", "2"
_PLACES, _SIGNS, _TABLE = "compeft.places", "compeft.signs", "compeft.table"
_RESTS = {"0": 0.0, "1": 1.0}


@dataclass(frozen=True, slots=True)
class Ternary:
    """A tensor of three values.

    Attributes:
        values: int8 in {-1, 0, 1}.
        scale: what 1 stands for.
    """

    values: Tensor
    scale: float


class _Entry(NamedTuple):
    """What the table says of one compressed tensor."""

    shape: tuple[int, ...]
    coder: str
    nnz: int
    rice_bits: int
    num_place_bytes: int
    scale: str
    sha256: str


def write_container(
    path: Path,
    tensors: Mapping[str, Ternary | Tensor],
    *,
    rest: float,
    config: Mapping[str, Any],
) -> None:
    """Write a file; one that is there is replaced when the new one is complete.

    Args:
        path: the file.
        tensors: compressed ones, and ones to be stored as they are.
        rest: 0 or 1.
        config: the adapter's own adapter_config.json.
    """
    stored = {key: t.contiguous() for key, t in tensors.items() if isinstance(t, Tensor)}
    entries: dict[str, _Entry] = {}
    places, signs = [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
    for key, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            continue
        values = np.ascontiguousarray(tensor.values.numpy())
        packed = encode(values.reshape(-1))
        entries[key] = _Entry(
            values.shape,
            packed.coder,
            packed.nnz,
            packed.rice_bits,
            packed.places.size,
            float(tensor.scale).hex(),
            _fingerprint(values),
        )
        places.append(packed.places)
        signs.append(packed.signs)
    stored[_PLACES] = torch.from_numpy(np.concatenate(places))
    stored[_SIGNS] = torch.from_numpy(np.concatenate(signs))
    table = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    stored[_TABLE] = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "rest": f"{rest:g}",
        "config": json.dumps(config),
    }
    partial = path.with_name(path.name + ".partial")
    save_file(stored, partial, metadata)
    partial.replace(path)


class DecodedFiles(AdapterFiles):
    """The folder that was compressed, read back out of the container.

    Args:
        files: a folder with a container.

    Raises:
        AdapterUnsupported: another version.
        AdapterMalformed: the container contradicts itself, or would unpack to more than the
            limits let a file hold.
    """

    def __init__(self, files: AdapterFiles):
        super().__init__(files.path, None, files.limits)
        stored = files.tensors(CONTAINER_NAME)
        metadata = stored.metadata
        if metadata.get("format") != FORMAT:
            raise _malformed("its metadata do not name the format")
        if (version := metadata.get("version")) != VERSION:
            raise AdapterUnsupported(
                f"{CONTAINER_NAME!r} was refused",
                f"it is of version {quote(version)}, and this server reads version {VERSION!r}",
                "Compress the adapter again."
                if version == "1"
                else "Update the server, or compress the adapter again.",
            )
        rest = _RESTS.get(metadata.get("rest", ""))
        if rest is None:
            raise _malformed(f"its rest value is {quote(metadata.get('rest'))}")
        self._config = self._parsed(
            metadata.get("config", "").encode("utf-8", "surrogatepass"),
            f"'config' in the metadata of {CONTAINER_NAME!r}",
        )
        table = self._parsed(_inflated(stored, self.limits.max_header_bytes), f"{_TABLE!r}")
        self._decoded = _DecodedTensors(stored, _entries(table), rest, files.limits.max_file_bytes)

    def has(self, name: str) -> bool:
        """The two files of a PEFT adapter."""
        return name in (CONFIG_NAME, WEIGHTS_NAME)

    def json(self, name: str) -> dict[str, Any]:
        """The adapter's own config."""
        return self._config if name == CONFIG_NAME else super().json(name)

    def tensors(self, name: str) -> TensorFile:
        """The adapter's tensors; they are decoded as they are read."""
        return self._decoded if name == WEIGHTS_NAME else super().tensors(name)

    def _parsed(self, text: bytes, what: str) -> dict[str, Any]:
        return parse_object(text, what, max_depth=self.limits.max_json_depth)


class _DecodedTensors(TensorFile):
    """Tensors as they were before compression, float32."""

    def __init__(
        self, stored: TensorFile, entries: Mapping[str, _Entry], rest: float, max_bytes: int
    ):
        self.name = stored.name
        self._stored, self._entries, self._rest = stored, entries, rest
        total = 4 * sum(math.prod(entry.shape) for entry in entries.values())
        if total > max_bytes:
            raise _malformed(f"it unpacks to {total} bytes; at most {max_bytes} are read")
        infos = {name: info for name, info in stored.infos.items() if name != _TABLE}
        lengths = {_PLACES: [e.num_place_bytes for e in entries.values()]}
        lengths[_SIGNS] = [-(-e.nnz // 8) for e in entries.values()]
        for stream, parts in lengths.items():
            info = infos.pop(stream, None)
            if info is None or info.dtype != torch.uint8 or info.shape != (sum(parts),):
                raise _malformed(f"it holds no {sum(parts)} bytes of {stream!r}")
        if twice := [key for key in entries if key in infos]:
            raise _malformed(f"{listing(twice)} are stored twice")
        for key, entry in entries.items():
            infos[key] = TensorInfo(torch.float32, entry.shape, 0, 4 * math.prod(entry.shape))
        self.index = Index(infos, stored.metadata)
        ends = [accumulate(parts) for parts in lengths.values()]
        self._ends = dict(zip(entries, zip(*ends, strict=True), strict=True))

    def read(self, name: str) -> Tensor:
        """The tensor, decoded if it is compressed."""
        entry = self._entries.get(name)
        if entry is None:
            return self._stored.read(name)
        place, sign = self._ends[name]
        packed = Packed(
            entry.coder,
            entry.nnz,
            entry.rice_bits,
            self._streams[_PLACES][place - entry.num_place_bytes : place],
            self._streams[_SIGNS][sign - -(-entry.nnz // 8) : sign],
        )
        try:
            values = decode(packed, math.prod(entry.shape))
        except CodecError as error:
            raise _malformed(f"{quote(name)} cannot be decoded: {error}") from None
        if _fingerprint(values) != entry.sha256:
            raise _malformed(f"{quote(name)} does not decode to what was encoded")
        scaled = torch.from_numpy(values).float().mul_(float.fromhex(entry.scale))
        return (scaled if self._rest == 0 else scaled.add_(self._rest)).reshape(entry.shape)

    @cached_property
    def _streams(self) -> dict[str, Bytes]:
        return {stream: self._stored.read(stream).numpy() for stream in (_PLACES, _SIGNS)}


def _fingerprint(values: NDArray[np.int8]) -> str:
    return hashlib.sha256(values.data).hexdigest()[:16]


def _inflated(stored: TensorFile, max_bytes: int) -> bytes:
    """The table's JSON: of bounded size, however little room it takes deflated."""
    info = stored.infos.get(_TABLE)
    if info is None or info.dtype != torch.uint8 or info.num_bytes > max_bytes:
        raise _malformed(f"it holds no bytes of {_TABLE!r}, or too many")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(stored.read(_TABLE).numpy().tobytes(), max_bytes)
    except zlib.error as error:
        raise _malformed(f"{_TABLE!r} cannot be inflated: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise _malformed(f"{_TABLE!r} ends early or late, or inflates to over {max_bytes} bytes")
    return text


def _entries(values: Mapping[str, Any]) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for key, value in values.items():
        if not isinstance(value, list) or len(value) != len(_Entry._fields):
            raise _malformed(f"what is said of {quote(key)} are no {len(_Entry._fields)} values")
        entry = _Entry(*value)
        if not isinstance(entry.shape, list) or not 1 <= len(entry.shape) <= 4:
            raise _malformed(f"the shape of {quote(key)} is {quote(entry.shape)}")
        if not _are_counts((*entry.shape, entry.nnz, entry.rice_bits, entry.num_place_bytes)):
            raise _malformed(f"the sizes of {quote(key)} are {quote(value)}")
        if entry.coder not in CODERS or not _is_scale(entry.scale):
            raise _malformed(f"coder and scale of {quote(key)} are {quote(value)}")
        entries[key] = entry._replace(shape=tuple(entry.shape))
    return entries


def _are_counts(values: Any) -> bool:
    return all(type(x) is int and 0 <= x < 1 << 40 for x in values)


def _is_scale(text: Any) -> bool:
    try:
        return math.isfinite(float.fromhex(text))
    except (TypeError, ValueError, OverflowError):
        return False


def _malformed(why: str) -> AdapterMalformed:
    return AdapterMalformed(f"{CONTAINER_NAME!r} was refused", why, "Compress the adapter again.")
