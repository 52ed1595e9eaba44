"""Which recipes wait for their adapters: first come first served.

Strictly, even where a later one would fit: a large adapter must not wait for ever behind small
ones.
"""

from __future__ import annotations

from collections import OrderedDict
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
        self._recipes: dict[tuple[str, ...], None] = {}
        self._asked: OrderedDict[tuple[str, ...], float] = OrderedDict()  # the longest ago first

    def ask(self, recipe: tuple[str, ...], now: float) -> bool:
        """Note that a recipe is wanted at the time `now`, in seconds. Amortised constant time.

        Returns:
            Whether other recipes were dropped because nobody asks for them any more.
        """
        self._recipes[recipe] = None
        self._asked[recipe] = now
        self._asked.move_to_end(recipe)
        expired = False
        while now - self._asked[oldest := next(iter(self._asked))] > EXPIRES_S:
            self.done(oldest)
            expired = True
        return expired

    def done(self, recipe: tuple[str, ...]) -> None:
        """The recipe runs."""
        self._recipes.pop(recipe, None)
        self._asked.pop(recipe, None)

    def drop(self, digest: str) -> None:
        """Forget the recipes that need an adapter: it failed, or it was unloaded."""
        self.retain(lambda recipe: digest not in recipe)

    def retain(self, is_possible: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the recipes that can never run."""
        for recipe in [recipe for recipe in self._recipes if not is_possible(recipe)]:
            self.done(recipe)

    def first(self, is_resident: Callable[[str], bool]) -> Want | None:
        """The first recipe that is not complete, None if there is none."""
        protected: set[str] = set()
        for recipe in self._recipes:
            protected.update(recipe)
            missing = tuple(digest for digest in recipe if not is_resident(digest))
            if missing:
                return Want(missing, frozenset(protected))
        return None
