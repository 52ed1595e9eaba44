"""Named recipes of the configuration: stacks and fusions, resolved per request; adapters to derive.

A recipe is an expression such as "a:0.7+b", or a table, on the command line as JSON:

    [recipes.legal-sql]
    adapters = [{name = "legal", weight = 0.7}, {name = "sql", weight = {q_proj = 0.5}}]

    [recipes.merged]
    method = "ties"
    sources = ["legal", {name = "sql", weight = 0.5}]
    density = 0.2

    [recipes.stronger-sql]
    fusion = {method = "proxy", experts = ["sql"], anchor = "demo", weights = 1.5}

    [recipes.best-sql]
    adapters = ["sql"]
    rerank = {scorer = "judge", candidates = 8}

The tables `fusion` and `rerank` are what a body may hold; `adapters` beside `fusion` are the first
member's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from turret_adapters.catalog import name_problem
from turret_adapters.derivation import Derivation, Source, derivation
from turret_server.errors import StartupError, TurretError
from turret_server.pipeline.adapter_weight import Weight
from turret_server.pipeline.fusion import FusionSpec
from turret_server.pipeline.recipe import Stack, parse_stack
from turret_server.pipeline.rerank import RerankSpec

_FIX = "Correct the recipe; docs/adapters.md shows both forms."


@dataclass(frozen=True, slots=True)
class NamedRecipes:
    """What the configuration asks for, by name.

    Attributes:
        stacks: adapters that run together, each as it is; of a fusion the first member's.
        derived: adapters to be made of others at the start.
        fusions: what is combined with the stack of the same name.
        reranks: how answers of the stack of the same name are chosen.
    """

    stacks: dict[str, Stack] = field(default_factory=dict)
    derived: dict[str, Derivation] = field(default_factory=dict)
    fusions: dict[str, FusionSpec] = field(default_factory=dict)
    reranks: dict[str, RerankSpec] = field(default_factory=dict)


def parse_recipes(
    recipes: Mapping[str, str],
    parse_fusion: Callable[[Any], FusionSpec],
    parse_rerank: Callable[[Any], RerankSpec],
) -> NamedRecipes:
    """Parse recipes; adapters that they name are not looked up yet.

    Args:
        recipes: by name: an expression, or a table in JSON.
        parse_fusion: reads a table `fusion` as bodies are read; raises ValueError or TurretError.
        parse_rerank: likewise a table `rerank`.

    Raises:
        StartupError: names the recipe, and says what is wrong with it.
    """
    parsed = NamedRecipes()
    for name, text in recipes.items():
        try:
            if problem := name_problem(name):
                raise ValueError(problem)
            table = json.loads(text) if text.startswith("{") else None
            if table is None:
                parsed.stacks[name] = parse_stack(text)
            elif "method" in table:
                parsed.derived[name] = parse_derivation(table)
            else:
                is_base = bool(table.keys() & {"fusion", "rerank"})  # unless it has adapters
                if "fusion" in table:
                    parsed.fusions[name] = parse_fusion(table.pop("fusion"))
                if "rerank" in table:
                    parsed.reranks[name] = parse_rerank(table.pop("rerank"))
                parsed.stacks[name] = () if is_base and not table else _stack(table)
        except (ValueError, TurretError) as error:
            raise recipe_error(name, str(error)) from None
    return parsed


def parse_derivation(table: Mapping[str, Any]) -> Derivation:
    """A table with `method`, `sources` and the method's parameters; sources are names.

    Raises:
        ValueError: says what is wrong.
    """
    sources = []
    for name, weight in _items(table.get("sources"), "sources"):
        if isinstance(weight, dict):
            raise ValueError(f"the weight of source {name!r} is a table; it must be a number")
        sources.append(Source(name, weight))
    options = {key: value for key, value in table.items() if key not in ("method", "sources")}
    return derivation(str(table["method"]), sources, options)


def recipe_error(name: str, why: str, fix: str = _FIX) -> StartupError:
    """The error for a recipe that cannot be served."""
    return StartupError(f"the recipe {name!r} cannot be served", why, fix)


def _stack(table: dict[str, Any]) -> Stack:
    if unknown := sorted(table.keys() - {"adapters"}):
        raise ValueError(
            f"{unknown[0]!r} is not known; there is adapters, fusion, rerank and method"
        )
    return tuple(_items(table.get("adapters"), "adapters"))


def _items(values: Any, what: str) -> Iterator[tuple[str, Weight]]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{what!r} is no list of adapters")
    for value in values:
        item: Any = {"name": value} if isinstance(value, str) else value
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(f"{value!r} in {what!r} names no adapter")
        if unknown := sorted(item.keys() - {"name", "weight"}):
            raise ValueError(f"{unknown[0]!r} in {what!r} is not known; there is name and weight")
        weight = item.get("weight", 1.0)
        for number in weight.values() if isinstance(weight, dict) else (weight,):
            if type(number) not in (int, float):
                raise ValueError(
                    f"the weight of {item['name']!r} is neither a number nor a table of numbers"
                )
        yield item["name"], weight
