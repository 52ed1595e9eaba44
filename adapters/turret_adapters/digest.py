"""The content digest of an adapter: the identity of its KV cache and of its place in the store.

Equal digests mean the same kind, settings and tensors. Where the folder lies, how the tensors are
ordered in the file, and notes about its training do not count.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turret_adapters.files import AdapterFiles
    from turret_adapters.spec import Kind

# Settings that say where an adapter comes from, not what it does.
_PROVENANCE = {
    "auto_mapping",
    "base_model",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}
# PEFT keeps these as sets, so every save orders them anew.
_UNORDERED = {"target_modules", "exclude_modules", "feedforward_modules"}


def content_digest(kind: Kind, files: AdapterFiles) -> str:
    """SHA-256 over the kind's files, in hex.

    Raises:
        AdapterError: a file is missing or damaged.
    """
    sha = hashlib.sha256(f"turret-adapter-2\0{kind.name}\0".encode())
    for name in sorted(kind.files_in(files)):
        sha.update(f"{name}\0".encode())
        if name.endswith(".json"):
            _update(sha, canonical(files.json(name)))
            continue
        tensors = files.tensors(name)
        if kind.reads_metadata:
            _update(sha, json.dumps(tensors.metadata, sort_keys=True).encode())
        _update(sha, tensors.index.listing)
        keys = tensors.index.names
        copies = {key for key in keys if kind.repeats_base is not None and kind.repeats_base(key)}
        for piece in tensors.all_chunks([key for key in keys if key not in copies]):
            sha.update(piece)
        for key in keys:
            if key in copies:
                for piece in tensors.sample_chunks(key):
                    sha.update(piece)
    return sha.hexdigest()


def canonical(config: dict[str, Any]) -> bytes:
    """An adapter_config.json without its provenance, as bytes.

    Top-level keys in order; nested objects as they are: in a pattern the first match wins.
    """
    kept: dict[str, Any] = {}
    for key in sorted(config.keys() - _PROVENANCE):
        value = config[key]
        if key in _UNORDERED and isinstance(value, list) and all(isinstance(x, str) for x in value):
            value = sorted(set(value))
        kept[key] = value
    return json.dumps(kept).encode()


def _update(sha: hashlib._Hash, data: bytes) -> None:
    # With its length, so that no two sequences of fields run together to the same bytes.
    sha.update(len(data).to_bytes(8, "little"))
    sha.update(data)
