"""Where the adapters of a recipe act in one request."""

from __future__ import annotations

from collections.abc import Sequence

from turret_adapters.errors import AdapterUnsupported, quote
from turret_adapters.loading import LoadedAdapter
from turret_adapters.positions import Reach, find_reach
from turret_adapters.weight_table import Weight, numbers_of


def recipe_reach(
    adapters: Sequence[LoadedAdapter], weights: Sequence[Weight], prompt: Sequence[int]
) -> Reach | None:
    """Where loaded adapters of these weights act in a request with this prompt.

    Returns:
        None for everywhere, with nothing before the prompt.

    Raises:
        AdapterUnsupported: virtual tokens of a weight that means nothing.
    """
    return find_reach(
        prompt,
        [
            (adapter.positions, _num_virtual(adapter, weight))
            for adapter, weight in zip(adapters, weights, strict=True)
        ],
    )


def _num_virtual(loaded: LoadedAdapter, weight: Weight) -> int:
    """Positions that an adapter of this weight puts before the prompt."""
    if not loaded.num_virtual_tokens or weight == 0:
        return 0
    if numbers_of(weight) != {1}:
        raise AdapterUnsupported(
            f"the weight of adapter {loaded.digest[:12]} cannot be {quote(weight)}",
            f"it puts {loaded.num_virtual_tokens} virtual tokens before the prompt: they are there "
            "or not, and without them there is nothing that a part of them could be added to",
            "Give it the weight 1, or leave it out.",
        )
    return loaded.num_virtual_tokens
