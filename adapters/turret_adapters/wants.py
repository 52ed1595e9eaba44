"""Which recipes wait for their adapters: first come first served.

Strictly, even where a later one would fit: a large adapter must not wait for ever behind small
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Recipes are asked for at every step. One that was not for this long, while others were, is gone.
EXPIRES_S = 2.0


@dataclass(frozen=True, slots=True)
class Want:
    """The first recipe that is not complete.

    Attributes:
        missing: its digests that are not resident.
        protected: digests that must not be evicted for it: its own and those of the recipes
            before it, which are complete and about to be pinned. Without this, two recipes of
            several adapters could evict each other's forever.
    """

    missing: tuple[str, ...]
    protected: frozenset[str]


class WantQueue:
    """Recipes in the order they were first asked for. The caller serialises access."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, ...], float] = {}

    def ask(self, recipe: tuple[str, ...], now: float) -> bool:
        """Note that a recipe is wanted at the time `now`, in seconds.

        Returns:
            Whether other recipes were dropped because nobody asks for them any more.
        """
        self._asked[recipe] = now
        stale = [r for r, asked in self._asked.items() if now - asked > EXPIRES_S]
        for old in stale:
            del self._asked[old]
        return bool(stale)

    def done(self, recipe: tuple[str, ...]) -> None:
        """The recipe runs."""
        self._asked.pop(recipe, None)

    def drop(self, digest: str) -> None:
        """Forget the recipes that need an adapter: it failed, or it was unloaded."""
        for recipe in [recipe for recipe in self._asked if digest in recipe]:
            del self._asked[recipe]

    def retain(self, is_possible: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the recipes that can never run."""
        for recipe in [recipe for recipe in self._asked if not is_possible(recipe)]:
            del self._asked[recipe]

    def first(self, is_resident: Callable[[str], bool]) -> Want | None:
        """The first recipe that is not complete, None if there is none."""
        protected: set[str] = set()
        for recipe in self._asked:
            protected.update(recipe)
            missing = tuple(digest for digest in recipe if not is_resident(digest))
            if missing:
                return Want(missing, frozenset(protected))
        return None
