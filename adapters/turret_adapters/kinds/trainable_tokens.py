"""Trainable tokens as PEFT saves them: new embeddings for a few token ids, which its config lists.

The rows replace the base's. A head that is tied to the embedding follows it; PEFT then stores the
same rows for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, RowDelta
from turret_adapters.errors import listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.roles import guess_sizes
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_KNOWN = frozenset({"init_weights", "target_modules", "token_indices"})
_EMBED, _HEAD = Site(-1, Module.EMBED), Site(-1, Module.HEAD)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, {})
        self._targets = Targets(config)
        self._tensors, self._shape = PeftTensors(files, shape, config, _role), shape
        self._ids = self._token_ids(config)

    def program(self) -> Program:
        tensors = self._tensors
        embed, head = (self._rows(site) for site in (_EMBED, _HEAD))
        if self._shape.tied_head and embed is not None:
            head = embed
        components: list[Component] = [
            self._change(site, rows)
            for site, rows in ((_EMBED, embed), (_HEAD, head))
            if rows is not None
        ]
        return tensors.program("trainable_tokens", components, targets=self._targets)

    def _rows(self, site: Site) -> Tensor | None:
        """The new rows of the embedding or the head, in the order of the config."""
        tensors, found = self._tensors, self._tensors.at(site)
        embedding = tensors.at(_EMBED).keys.get("rows")
        if site == _HEAD and self._shape.tied_head and embedding is not None:
            # Copies of the embedding's, whether the config names the head or not.
            first = self._read(embedding)
            for key in found.keys.values():
                if not torch.equal(self._read(key), first):
                    raise tensors.wrong_base(
                        f"{quote(key)} differs from the embedding's rows, and this base has one "
                        "matrix for both"
                    )
            return None
        matched = self._targets.matches(found.path, site)
        if matched is None:  # PEFT's default
            matched = site == _EMBED
        adapted = tensors.is_adapted(site, ("rows",), self._targets, matched)
        return self._read(found.keys["rows"]) if adapted else None

    def _read(self, key: str) -> Tensor:
        hidden = self._shape.dims[Module.EMBED][1]
        return self._tensors.read(key, (len(self._ids), hidden), rank_dim=0).float()

    def _change(self, site: Site, rows: Tensor) -> RowDelta:
        ids, order = self._ids.sort()
        return RowDelta(site, ids, rows[order] - self._tensors.base_rows(site, ids))

    def _token_ids(self, config: PeftConfig) -> Tensor:
        """token_indices, int64."""
        ids, vocab = config.get("token_indices"), self._shape.dims[Module.EMBED][0]
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            raise config.malformed(f"token_indices is {quote(ids)}, not a list of token ids")
        strangers = [str(i) for i in ids if not 0 <= i < vocab]
        if strangers:
            raise self._tensors.wrong_base(
                f"token_indices names {listing(strangers)}, and this base has {vocab} tokens"
            )
        if len(set(ids)) < len(ids):
            raise config.malformed("token_indices names a token twice")
        return torch.tensor(ids, dtype=torch.int64)


def _role(name: TensorName) -> str | None:
    """A tied head that the config names, too, is wrapped twice by PEFT."""
    is_nested = name.role[0] == "base_layer"
    parts = list(name.role[is_nested:])
    # The adapter's name may follow.
    is_ours = parts[:1] == ["trainable_tokens_delta"] and len(parts) <= 2
    if name.site not in (_EMBED, _HEAD) or not is_ours:
        return None
    return "nested rows" if is_nested else "rows"


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "TRAINABLE_TOKENS")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    ids = PeftConfig(files).get("token_indices")
    vocab = 1 + max((i for i in ids if type(i) is int), default=0) if isinstance(ids, list) else 1
    found = guess_sizes(files, _role, lambda shapes: (vocab, (shapes.get("rows") or (0,))[-1])).dims
    hidden = max((width for _, width in found.values()), default=0)
    dims = {Module.EMBED: (vocab, hidden), Module.HEAD: (hidden, vocab)}
    return ModelShape(0, dims, tied_head=len(found) == 2)


KIND = Kind("trainable_tokens", _detect, _compile, _guess_shape)
