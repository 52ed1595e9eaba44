"""How an adapter is made of others. Torch-free: it crosses the process boundary as it is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_RANKED = frozenset({"rank"})
# The parameters that each method takes.
METHODS: Mapping[str, frozenset[str]] = {
    "sum": frozenset(),
    "svd": _RANKED,
    "ties": _RANKED | {"density"},
    "dare": _RANKED | {"density", "seed"},
    "dare_ties": _RANKED | {"density", "seed"},
    "magnitude_prune": _RANKED | {"density"},
    "breadcrumbs": _RANKED | {"density", "gamma"},
    "peft-linear": frozenset(),
    "lorax-linear": frozenset(),
}
MAX_SOURCES = 16
MAX_WEIGHT = 16.0


@dataclass(frozen=True, slots=True)
class Source:
    """One of the adapters that another is made of.

    Attributes:
        path: its folder; in a configuration, before names are resolved, its name.
        weight: how much of its change is taken.
        roots: folders that may be read for it, None for all.
        digest: what is meant; None for whatever the folder holds.
    """

    path: str
    weight: float = 1.0
    roots: tuple[str, ...] | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A recipe for a new adapter; `turret_adapters.compose` carries it out.

    Attributes:
        method: see METHODS, and docs/adapters.md for what they compute.
        sources: in order.
        density: fraction of the values that are kept, in (0, 1].
        gamma: fraction of each row's largest values that breadcrumbs drops, in [0, 1).
        rank: of the result at each site; None for the sum of the sources' ranks.
        seed: of what is drawn at random.
    """

    method: str
    sources: tuple[Source, ...]
    density: float = 1.0
    gamma: float = 0.01
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)

    def __str__(self) -> str:
        parts = [f"{s.path}:{s.weight:g}" if s.weight != 1 else s.path for s in self.sources]
        options = [f"{k}={v:g}" for k, v in self._options().items() if v is not None]
        return f"{self.method}({', '.join([*parts, *options])})"

    def digest(self, sources: Sequence[str]) -> str:
        """Identity of the derived adapter, from the digests of its sources, in order."""
        used = [[d, float(s.weight)] for d, s in zip(sources, self.sources, strict=True)]
        text = json.dumps([self.method, used, self._options()], sort_keys=True)
        return hashlib.sha256(f"turret-derived-1\0{text}".encode()).hexdigest()

    def _options(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in sorted(METHODS[self.method])}

    def _problem(self) -> str | None:
        if self.method not in METHODS:
            return _unknown(self.method)
        if not 1 <= len(self.sources) <= MAX_SOURCES:
            return f"it names {len(self.sources)} sources; 1 to {MAX_SOURCES} can be merged"
        for source in self.sources:
            if not _is_number(source.weight) or abs(source.weight) > MAX_WEIGHT:
                return f"the weight {source.weight!r} of {source.path!r} is not within ±16"
        if not _is_number(self.density) or not 0 < self.density <= 1:
            return f"density {self.density!r} is not in (0, 1]"
        if not _is_number(self.gamma) or not 0 <= self.gamma < 1:
            return f"gamma {self.gamma!r} is not in [0, 1)"
        if self.rank is not None and not (type(self.rank) is int and self.rank >= 1):
            return f"rank {self.rank!r} is no integer of at least 1"
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            return f"seed {self.seed!r} is no integer in [0, 2^63)"
        return None


def derivation(method: str, sources: Sequence[Source], options: Mapping[str, Any]) -> Derivation:
    """A derivation from a configuration's own words.

    Raises:
        ValueError: says which value is wrong, or which parameter is missing or not the method's.
    """
    taken = METHODS.get(method)
    if taken is None:
        raise ValueError(_unknown(method))
    if unknown := sorted(options.keys() - taken):
        takes = ", ".join(sorted(taken)) or "no parameter"
        raise ValueError(f"{method} takes {takes}, not {unknown[0]!r}")
    if "density" in taken and "density" not in options:
        raise ValueError(f"{method} needs a density")
    return Derivation(method=method, sources=tuple(sources), **options)


def _unknown(method: str) -> str:
    return f"the method {method!r} is none of {', '.join(METHODS)}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
