"""The tensors of a model folder: safetensors files, mapped, read once, and let go.

Format: eight bytes (length of the header), the header (JSON: dtype, shape and byte range of each
tensor), the data. See https://github.com/huggingface/safetensors. Reading the header ourselves,
where `safe_open` would do, lets us give back the pages of a tensor as soon as it is copied: the
process never holds the file beside the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from turret_server.errors import StartupError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
# Where the language model lies in a model that also sees (both spellings are transformers' own).
_TEXT_PARTS = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_VISION_PARTS = ("vision_tower.", "multi_modal_projector.")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies: `mapping[start : start + num_bytes]`."""

    mapping: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Checkpoint:
    """The weights in a folder: `model.safetensors`, or the shards its index names.

    Args:
        folder: the model folder.
        has_vision: its language model is one part, whose tensors get the names they have alone;
            those of the vision tower are left out.

    Raises:
        StartupError: a file is missing, truncated or not safetensors.
    """

    def __init__(self, folder: Path, has_vision: bool = False) -> None:
        self._folder, self._has_vision = folder, has_vision
        self._stored: dict[str, _Stored] = {}
        self._samples: dict[str, bytes] = {}
        for path in self._files():
            self._map(path)

    def names(self) -> set[str]:
        """Every tensor in the files."""
        return set(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._stored[name].shape

    def num_bytes(self, name: str) -> int:
        """The size of a tensor in its file."""
        return self._stored[name].num_bytes

    def read(self, name: str, out: Tensor, part: tuple[slice, ...] = ()) -> None:
        """Copy a tensor into `out`, in the dtype and on the device of `out`; release its pages.

        Args:
            name: of the tensor.
            out: as large as what is copied.
            part: slices of the first dimensions, where only these are copied.

        Raises:
            StartupError: it is stored in a dtype other than a plain float.
        """
        at = self._stored[name]
        _advise(at, "MADV_WILLNEED")
        out.copy_(self._view(name)[part])
        self._samples[name] = _sample(at)
        _advise(at, "MADV_DONTNEED")

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same values in the same shape."""
        same = torch.equal(self._view(name), self._view(other))
        for at in (self._stored[name], self._stored[other]):
            _advise(at, "MADV_DONTNEED")
        return same

    def digest(self) -> str:
        """SHA-256, in hex, over name, dtype, shape and a sample of every tensor read so far.

        The sample is 64 pieces of 4 KiB, evenly spaced, of each tensor (all of it up to 256 KiB),
        taken while its pages are warm. That tells trained models apart in a fraction of the time
        that hashing all bytes takes; it is no proof that a file is undamaged. How tensors are
        spread over shards does not matter.
        """
        whole = hashlib.sha256()
        for name in sorted(self._samples):
            at = self._stored[name]
            whole.update(f"{name} {at.dtype} {at.shape} ".encode() + self._samples[name])
        return whole.hexdigest()

    def refuse(self, why: str, fix: str = "") -> NoReturn:
        """Refuse the folder.

        Raises:
            StartupError: always.
        """
        raise StartupError(
            f"model {str(self._folder)!r} cannot be served",
            why,
            fix or "Download it again, or save it again with model.save_pretrained(folder).",
        )

    def _view(self, name: str) -> Tensor:
        """The tensor in the mapping itself: not to be kept, not to be written to."""
        at = self._stored[name]
        dtype = _DTYPES.get(at.dtype)
        if dtype is None:
            self.refuse(
                f"tensor {name!r} is stored as {at.dtype}, but only {', '.join(_DTYPES)} are read",
                "Serve the model's float16 or bfloat16 checkpoint.",
            )
        count = math.prod(at.shape)
        return torch.frombuffer(at.mapping, dtype=dtype, count=count, offset=at.start).view(
            at.shape
        )

    def _files(self) -> list[Path]:
        single = self._folder / "model.safetensors"
        if single.is_file():  # transformers prefers it to an index, too
            return [single]
        index = self._folder / "model.safetensors.index.json"
        if not index.is_file():
            self.refuse(f"it has neither {single.name} nor {index.name}")
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.refuse(f"{index.name} cannot be read ({type(error).__name__}: {error})")
        for shard in shards:
            if Path(shard).name != shard or not (self._folder / shard).is_file():
                self.refuse(f"{index.name} names {shard!r}, which is not a file of the folder")
        return [self._folder / shard for shard in shards]

    def _map(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                # Private and writable in name only: torch wants buffers it could write to.
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            header_bytes = int.from_bytes(mapping[:8], "little")
            if not 0 < header_bytes <= min(len(mapping) - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"the header claims {header_bytes} bytes")
            header = json.loads(mapping[8 : 8 + header_bytes])
            header.pop("__metadata__", None)
            for stored_name, entry in header.items():
                name = _text_name(stored_name) if self._has_vision else stored_name
                if name is None:
                    continue
                if name in self._stored:
                    raise ValueError(f"tensor {name!r} occurs twice")
                self._stored[name] = _stored(mapping, 8 + header_bytes, name, entry)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.refuse(f"{path.name} is not a whole safetensors file ({error})")


def _stored(mapping: mmap.mmap, data: int, name: str, entry: dict[str, Any]) -> _Stored:
    dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not 0 <= first <= last <= len(mapping) - data:
        raise ValueError(f"tensor {name!r} ends beyond the file")
    known = _DTYPES.get(dtype)
    if known is not None and math.prod(shape) * known.itemsize != last - first:
        raise ValueError(f"tensor {name!r} has {last - first} bytes, which is not its shape")
    return _Stored(mapping, dtype, shape, data + first, last - first)


def _text_name(name: str) -> str | None:
    """The name of a tensor of the language model alone; None for the vision tower's."""
    if name.removeprefix("model.").startswith(_VISION_PARTS):
        return None
    for stored, alone in _TEXT_PARTS.items():
        if name.startswith(stored):
            return alone + name.removeprefix(stored)
    return name


def _sample(at: _Stored) -> bytes:
    digest = hashlib.sha256()
    stride = max(_SAMPLE_BYTES, at.num_bytes // _SAMPLES)
    for offset in range(0, at.num_bytes, stride):
        first = at.start + offset
        digest.update(at.mapping[first : min(first + _SAMPLE_BYTES, at.start + at.num_bytes)])
    return digest.digest()


def _advise(at: _Stored, advice: str) -> None:
    if hasattr(mmap, advice):  # not on every system
        first = at.start - at.start % mmap.PAGESIZE
        at.mapping.madvise(getattr(mmap, advice), first, at.start + at.num_bytes - first)
