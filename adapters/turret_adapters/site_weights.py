"""Weights per site in a step: from a request's table to what kernels read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_adapters.spec import Module
from turret_adapters.weight_table import Weight
from turret_kernels.entries import Entries

_ORDER = {module: number for number, module in enumerate(Module)}


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """One adapter's weights in one request; made when it arrives, used by every step.

    Attributes:
        table: by module name, one number or one per layer; a module that is not named has 1.
        num_layers: of the base.
        column: float32 [num_sites(num_layers)], by `site_index`.
    """

    table: dict[str, float | tuple[float, ...]]
    num_layers: int
    column: Tensor = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        column = torch.ones(self.num_layers + 1, len(Module))
        for name, weight in self.table.items():
            number = _ORDER[Module(name)]
            if isinstance(weight, tuple):
                column[1:, number] = torch.tensor(weight)
            else:
                column[:, number] = weight
        object.__setattr__(self, "column", column.flatten())

    @classmethod
    def of(cls, weight: Weight, num_layers: int) -> float | SiteWeights:
        """A number stays one."""
        return cls(weight, num_layers) if isinstance(weight, dict) else weight


def num_sites(num_layers: int) -> int:
    """One more than the largest `site_index`."""
    return (num_layers + 1) * len(Module)


def site_index(layer: int, module: Module) -> int:
    """The row of a site in `Entries.by_site`; `layer` is -1 for those in no layer."""
    return (layer + 1) * len(Module) + _ORDER[module]


def weight_at(entries: Entries, layer: int, module: Module) -> Tensor:
    """The entries' weights at a site, float32 [E]."""
    return entries.weight if entries.by_site is None else entries.by_site[site_index(layer, module)]
