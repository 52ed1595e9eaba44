"""Many changes of what is served that happen together or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from turret_adapters.derivation import Derivation
from turret_server.errors import TurretError
from turret_server.pipeline.recipe import RecipeBook
from turret_server.pipeline.recipe_config import NamedRecipes, recipe_error
from turret_server.sources.adapter import LocalAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be served from now on, as far as it differs.

    Attributes:
        load: by name: the folder, the only content that is accepted, and whether it is pinned.
        derive: by name: what to make of others, which may be among those that are loaded.
        unload: names that are served no more; one that is not served is nothing.
        recipes: all of them, in the place of those before.
    """

    load: Mapping[str, tuple[LocalAdapter, str | None, bool]]
    derive: Mapping[str, Derivation]
    unload: Collection[str]
    recipes: NamedRecipes


@contextmanager
def blame(param: str) -> Iterator[None]:
    """Errors name the setting at fault."""
    try:
        yield
    except TurretError as error:
        error.param = param
        raise


def check_names(book: RecipeBook) -> None:
    """Check the recipes of a book against the names that will be served beside them.

    A recipe whose adapters are not loaded is fine: it is a model once they are.

    Raises:
        StartupError: a recipe cannot be resolved, or a name means two things.
    """
    for name in book.recipes:
        with blame(f"recipes.{name}"):
            if name in (*book.base_names, *book.auxiliaries):
                raise recipe_error(name, "a base model has this name", "Choose another name.")
            if book.catalog.get(name) is not None:
                raise recipe_error(name, "an adapter has this name", "Choose another name.")
            if not book.missing(name):
                try:
                    book.resolve(name)
                except TurretError as error:
                    raise recipe_error(name, f"{error.what}: {error.why}", error.fix) from error
