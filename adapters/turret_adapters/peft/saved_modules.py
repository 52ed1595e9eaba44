"""Full copies beside a PEFT adapter that are small changes: gains of norms, rows of tokens."""

from __future__ import annotations

from typing import Any

import torch

from turret_adapters.components import Component, RowDelta, Scale
from turret_adapters.errors import listing, quote
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import FULL_WEIGHTS
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.sites import NORMED
from turret_adapters.spec import LINEARS, Module, Site

_TABLES = (Module.EMBED, Module.HEAD)


def new_gains(tensors: PeftTensors, names: list[str]) -> list[Component]:
    """modules_to_save, where it names norms: a scale by new gain / old gain after each.

    A stored embedding or head must repeat the base's (`PeftTensors.ignore_base_copy`).

    Args:
        tensors: the adapter's.
        names: ends of module names, as PEFT matches them.

    Raises:
        AdapterError: weights of a linear, a copy that is missing, or a gain that was zero.
    """
    if not names:
        return []
    suffixes = tuple(names)
    full = [s for s in tensors.sites if s.module in LINEARS and "weight" in tensors.at(s).keys]
    if full:
        raise tensors.unsupported(
            f"modules_to_save is set: {FULL_WEIGHTS}, not the weights of {listing([str(full[0])])}",
            "Train it as LoRA, or serve the merged model.",
        )
    shape = tensors.shape
    sites = [Site(layer, module) for layer in range(shape.num_layers) for module in NORMED]
    sites += [Site(-1, module) for module in (Module.HEAD_IN, *_TABLES)]
    components: list[Component] = []
    for site in sites:
        found = tensors.at(site)
        if not shape.has(site) or not found.path.endswith(suffixes):
            continue
        key = found.keys.get("weight")
        if key is None:
            if site.module is Module.HEAD and shape.tied_head:
                continue  # stored once, at the embedding
            raise tensors.malformed(f"modules_to_save names {found.path}, but it is not stored")
        if site.module not in _TABLES:
            components.append(_gain(tensors, site, key))
    return components


def _gain(tensors: PeftTensors, site: Site, key: str) -> Scale:
    offset = tensors.shape.gain_offset
    new = tensors.read(key, (tensors.shape.width(site.module),)).float() + offset
    if tensors.shape.gain is None:
        raise tensors.unsupported(
            f"{quote(key)} replaces the gain of a norm, and no base is at hand to compare it with",
            "Load it into a server of its base.",
        )
    old = tensors.shape.gain(site).float().cpu() + offset
    ratio = torch.where(new == old, 1.0, new / old)
    if not torch.isfinite(ratio).all():
        raise tensors.unsupported(
            f"{quote(key)} gives a gain to a feature that the base's norm has set to zero",
            "Serve the merged model.",
        )
    return Scale(site, ratio)


def new_rows(tensors: PeftTensors, config: PeftConfig) -> list[Component]:
    """trainable_token_indices: the rows of embedding or head that these tokens replace.

    With a tied head the embedding's rows are the head's, too.

    Raises:
        AdapterError: ids that are no tokens, or rows of another module.
    """
    wanted = config.get("trainable_token_indices")
    if not wanted:
        return []
    by_name: dict[str, Any] = wanted if isinstance(wanted, dict) else {"embed_tokens": wanted}
    components: list[Component] = []
    for name, ids in by_name.items():
        site = next((s for m in _TABLES if tensors.at(s := Site(-1, m)).path.endswith(name)), None)
        if site is None:
            raise config.unsupported(f"trainable_token_indices names {quote(name)}, no embedding")
        first = _rows(tensors, config, site, ids)
        components.append(first)
        if tensors.shape.tied_head and site.module is Module.EMBED:
            components.append(RowDelta(Site(-1, Module.HEAD), first.ids, first.delta))
    return components


def _rows(tensors: PeftTensors, config: PeftConfig, site: Site, ids: Any) -> RowDelta:
    found = tensors.at(site)
    if not isinstance(ids, list) or not ids:
        raise config.malformed(f"trainable_token_indices of {found.path} is no list of token ids")
    ids = [config.checked_integer("trainable_token_indices", x, 0) for x in ids]
    if len(set(ids)) < len(ids):
        raise config.malformed(f"trainable_token_indices of {found.path} repeats a token")
    if "rows" not in found.keys:
        raise tensors.malformed(f"trainable_token_indices names {found.path}, but no row is stored")
    if tensors.shape.weight is None:
        raise tensors.unsupported(
            "it replaces rows of the embedding, and no base is at hand to compare them with",
            "Load it into a server of its base.",
        )
    dims = tensors.shape.dims[site.module]
    vocab, hidden = dims if site.module is Module.EMBED else reversed(dims)
    if max(ids) >= vocab:
        raise tensors.wrong_base(f"it trains token {max(ids)}, and this base has {vocab}")
    if "lora_A" in found.keys:
        raise tensors.unsupported(
            f"{found.path} has both LoRA factors and rows of its own",
            "Train it with one of them.",
        )
    new = tensors.read(found.keys["rows"], (len(ids), hidden)).float()
    order = torch.tensor(ids).argsort()
    rows = torch.tensor(ids)[order]
    old = tensors.shape.weight(site)[rows].float().cpu()
    return RowDelta(site, rows, new[order] - old)
