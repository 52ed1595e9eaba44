"""The answer of a reload."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ReloadAnswer(BaseModel):
    """What the configuration has changed, and what of it this server cannot change."""

    changed: list[str] = Field(description="Settings of turret.toml: `adapters.sql`, `api_keys`.")
    needs_restart: list[str] = Field(
        description="Settings that differ from what the server runs with until it is restarted."
    )
    waiting: dict[str, list[str]] = Field(
        description="Recipes that are no models yet, by the adapters of theirs that nobody has "
        'loaded: `{"recipes.both": ["sql"]}`.'
    )
