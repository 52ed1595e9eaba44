"""Soft prompts and prefixes: what the virtual tokens of every resident adapter are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_adapters.components import Component, Prefix, SoftPrompt
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group, point
from turret_adapters.spec import Site
from turret_kernels.rope_kv import KVCache, store_kv


@dataclass(slots=True)
class _Content:
    """One adapter's virtual tokens: their embeddings, or their keys and values by layer."""

    embeddings: Tensor | None = None
    prefix: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class VirtualBank:
    """The contents of virtual tokens. Threads as in `LowRankBank`.

    They are written into rows that the engine puts before the prompt, so that the rest of the
    decoder, and the cache, see ordinary tokens.

    Args:
        num_slots: adapters that can be resident at once.
        device: where they live.
        dtype: the served dtype.
    """

    capturable = True  # no graph holds a virtual token: a step that computes one is no decode
    layout = 0

    def __init__(self, num_slots: int, device: torch.device, dtype: torch.dtype):
        self.touched = [0] * num_slots
        self._device, self._dtype = device, dtype
        self._contents: list[_Content] = [_Content() for _ in range(num_slots)]

    def takes(self, component: Component) -> bool:
        """Is it stored here?"""
        return isinstance(component, (SoftPrompt, Prefix))

    def demand(self, components: Sequence[SoftPrompt | Prefix]) -> dict[Site, int]:
        """Virtual tokens, per site."""
        return {c.site: c.tensors[0].shape[0] for c in components}

    def check_fits(self, demands: Sequence[Mapping[Site, int]]) -> None:
        """Can these adapters act on one request together?

        Raises:
            AdapterUnsupported: two of them put virtual tokens before the prompt.
        """
        if sum(bool(demand) for demand in demands) > 1:
            raise AdapterUnsupported(
                "the adapters cannot act on one request together",
                "two of them put virtual tokens before the prompt, and each was trained to stand "
                "right before it",
                "Name one of them.",
            )

    def put(self, slot: int, components: Sequence[SoftPrompt | Prefix]) -> bool:
        """Store an adapter's virtual tokens. Always true."""
        content, mask = _Content(), 0
        for component in components:
            if isinstance(component, SoftPrompt):
                content.embeddings = self._own(component.embeddings)
            else:
                pair = self._own(component.keys), self._own(component.values)
                content.prefix[component.site.layer] = pair
            mask |= 1 << point(component.site.layer, Group.of(component.site.module))
        self._contents[slot], self.touched[slot] = content, mask
        return True

    def clear(self, slot: int) -> None:
        """Forget a slot; an empty one is fine."""
        self._contents[slot], self.touched[slot] = _Content(), 0

    def embed(self, slot: int, first: int, hidden: Tensor) -> None:
        """Write the embeddings of virtual tokens `first`, `first` + 1, … into `hidden` [n, H]."""
        embeddings = self._contents[slot].embeddings
        if embeddings is not None:
            hidden.copy_(embeddings[first : first + hidden.shape[0]])

    def store(self, layer: int, slot: int, first: int, places: Tensor, cache: KVCache) -> None:
        """Write keys and values of virtual tokens `first`, … into the cache of a layer.

        Args:
            layer: its number.
            slot: of the adapter.
            first: number of the first virtual token.
            places: int64 [n], cache slots of the tokens.
            cache: of the layer.
        """
        pair = self._contents[slot].prefix.get(layer)
        if pair is not None:
            n, dim = places.shape[0], cache.k.shape[3]
            k, v = (x[first : first + n].view(n, -1, dim) for x in pair)
            store_kv(k, v, places, cache)

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype).contiguous()
