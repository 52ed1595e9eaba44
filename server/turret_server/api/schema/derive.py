"""The body part that asks for an adapter made of others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turret_adapters.derivation import MAX_SOURCES, METHODS
from turret_server.api.schema.base import ClosedPart

SourceName = Annotated[str, Field(min_length=1, max_length=128)]


class SourceChoice(ClosedPart):
    """One adapter to derive from."""

    name: SourceName = Field(description="Name of an adapter.")
    weight: float = Field(1.0, description="How much of its change is taken, -16 to 16.")


class DeriveBody(ClosedPart):
    """What to make of which adapters: a recipe with `method`, as in turret.toml."""

    method: str = Field(max_length=64, description=f"One of {', '.join(METHODS)}.")
    sources: list[SourceName | SourceChoice] = Field(
        min_length=1, max_length=MAX_SOURCES, description="Adapters: names, or names with weights."
    )
    density: float | None = Field(None, description="Fraction of the values that are kept.")
    gamma: float | None = Field(None, description="Fraction of the largest that breadcrumbs drops.")
    rank: int | None = Field(None, description="Of the result. Default: the sources' ranks added.")
    seed: int | None = Field(None, description="Of what DARE draws. Default 0.")
