"""A weight per place of the model, as a request writes it. Torch-free.

    {"q_proj": 0.5, "layers.0-11.mlp": 0.2, "*": 0}

A key is `*`, a module (`q_proj`, …, `embed_tokens`, `lm_head`), a group of modules (`self_attn`,
`mlp`), or `layers.N` or `layers.N-M` (from 0, both ends included), alone or followed by a module or
a group. The most specific key holds: a module beats a group, a group beats none; then fewer layers
beat more, and more beat all. What no key names has weight 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from turret_adapters.sites import UNLAYERED, Module

MAX_KEYS = 1024

# A number, or numbers by module: one, or one per layer. How a request's weight is handed on.
Weight = float | dict[str, float | tuple[float, ...]]

_GROUPS = {
    "self_attn": (Module.Q, Module.K, Module.V, Module.O, Module.HEADS),
    "mlp": (Module.GATE, Module.UP, Module.DOWN, Module.ACT, Module.INNER),
}
_NAMES = {
    "*": (0, tuple(Module)),
    **{name: (1, modules) for name, modules in _GROUPS.items()},
    **{str(module): (2, (module,)) for module in Module},
}
_LAYERS = re.compile(r"layers\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(\w+))?", re.ASCII)


class BadWeightTable(ValueError):
    """A table that cannot be applied; `why` and `fix` are sentences."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass(frozen=True, slots=True)
class _Key:
    """What one key names: modules, in layers `first` to `last`; and how specific it is."""

    text: str
    modules: tuple[Module, ...]
    first: int
    last: int
    rank: int


def expand(table: Mapping[str, float], targets: Iterable[str], num_layers: int) -> Weight:
    """The weight at every place that an adapter touches, in the one form that tables of the same
    meaning share.

    Args:
        table: as a request writes it.
        targets: names of the modules that the adapter touches.
        num_layers: of the base.

    Returns:
        A number where it is the same everywhere, else by module a number, or one per layer.

    Raises:
        BadWeightTable: a key names nothing, no part of the adapter, or the same as another.
    """
    touched = [Module(name) for name in targets]
    sizes = {module: 1 if module in UNLAYERED else num_layers for module in touched}
    weights = {module: [1.0] * size for module, size in sizes.items()}
    ranks = {module: [-1] * size for module, size in sizes.items()}
    done: list[_Key] = []
    for key in sorted((_parse(text, num_layers) for text in table), key=lambda key: key.rank):
        modules = [module for module in key.modules if module in weights]
        if not modules and key.text != "*":
            raise BadWeightTable(
                f"the adapter has nothing at {key.text!r}: it touches {', '.join(touched)}",
                "Leave it out.",
            )
        for module in modules:
            first, last = (0, 0) if module in UNLAYERED else (key.first, key.last)
            if key.rank in ranks[module][first : last + 1]:
                raise _overlap(key, module, done)
            count = last + 1 - first
            weights[module][first : last + 1] = [float(table[key.text])] * count
            ranks[module][first : last + 1] = [key.rank] * count
        done.append(key)
    numbers = {number for by_layer in weights.values() for number in by_layer}
    if len(numbers) < 2:
        return numbers.pop() if numbers else 1.0
    return {str(m): w[0] if len(set(w)) == 1 else tuple(w) for m, w in weights.items()}


def numbers_of(weight: Weight) -> set[float]:
    """Every number that a weight contains."""
    if not isinstance(weight, dict):
        return {weight}
    values = weight.values()
    return {x for value in values for x in (value if isinstance(value, tuple) else (value,))}


def _parse(text: str, num_layers: int) -> _Key:
    found = _LAYERS.fullmatch(text)
    name = text if found is None else found[3] or "*"
    if name not in _NAMES:
        close = get_close_matches(name[:64], _NAMES, n=1, cutoff=0.6)
        raise BadWeightTable(
            f"{text[:128]!r} names no place: a key is one of {', '.join(_NAMES)}, or layers.N or "
            "layers.N-M, alone or followed by one of them",
            f"Did you mean {close[0]!r}?" if close else "Correct it.",
        )
    level, modules = _NAMES[name]
    if found is None:
        return _Key(text, modules, 0, num_layers - 1, level * (num_layers + 2))
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < num_layers:
        raise BadWeightTable(
            f"{text!r} names no layers: the base has {num_layers}, from 0 to {num_layers - 1}",
            "Write layers.N, or layers.N-M with N below M.",
        )
    modules = tuple(module for module in modules if module not in UNLAYERED)
    if not modules:
        raise BadWeightTable(f"{text!r} names nothing: {name} lies in no layer", f"Write {name!r}.")
    rank = level * (num_layers + 2) + num_layers + 1 - (last + 1 - first)
    return _Key(text, modules, first, last, rank)


def _overlap(key: _Key, module: Module, done: Sequence[_Key]) -> BadWeightTable:
    other = next(
        x
        for x in done
        if x.rank == key.rank
        and module in x.modules
        and x.first <= key.last
        and key.first <= x.last
    )
    layer = max(key.first, other.first)
    return BadWeightTable(
        f"{other.text!r} and {key.text!r} both name layers.{layer}.{module}, and neither is more "
        "specific",
        "Let their layers be disjoint.",
    )
