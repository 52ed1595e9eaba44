"""Low-rank branches in two bits a value, where their factors need no more (ComPEFT's do)."""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, LowRank, TernaryLowRank
from turret_adapters.spec import LINEARS, Module
from turret_kernels.ternary_low_rank import pack_ternary

# At an activation a branch reads what it changes, as it was before all others: one kernel's work.
# The embedding's factor is read by columns.
_MODULES = frozenset({*LINEARS, Module.HEAD})


def as_ternary(component: Component) -> Component:
    """The branch as `TernaryLowRank` where that is the same change; else as it is.

    The scales stay float32: what a 16-bit copy of the factors would round is not rounded.

    Args:
        component: as compiled, in the stored dtype or a wider one.
    """
    if (
        not isinstance(component, LowRank)
        or component.num_experts
        or component.site.module not in _MODULES
    ):
        return component
    a, b = _magnitudes(component.a), _magnitudes(component.b)
    if a is None or b is None:
        return component
    return TernaryLowRank(
        component.site,
        a=pack_ternary(component.a.sign()),
        b=pack_ternary(component.b.sign()),
        scale=a * b,
        in_features=component.a.shape[1],
        out_features=component.b.shape[1],
    )


def _magnitudes(factor: Tensor) -> Tensor | None:
    """float32 [rank], where every value of a row is 0 or of that magnitude; else None."""
    for rows in (factor[:1], factor):  # the first row tells of nearly every adapter that is none
        largest = rows.abs().amax(1, keepdim=True)
        if not ((rows == 0) | (rows.abs() == largest)).all():
            return None
    return factor.abs().amax(1).to(torch.float32)
