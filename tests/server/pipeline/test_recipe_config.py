from __future__ import annotations

import json

import pytest

from turret_adapters.derivation import Derivation, Source
from turret_server.api.schema.fusion import parse_fusion
from turret_server.api.schema.rerank import parse_rerank
from turret_server.errors import StartupError
from turret_server.pipeline.recipe import show_stack
from turret_server.pipeline.recipe_config import parse_recipes
from turret_server.pipeline.rerank import RerankSpec


def parse(value: object, name: str = "mine"):
    text = value if isinstance(value, str) else json.dumps(value)
    return parse_recipes({name: text}, parse_fusion, parse_rerank)


def test_expressions_and_tables_are_stacks() -> None:
    assert parse("a:0.5+b").stacks == {"mine": (("a", 0.5), ("b", 1.0))}
    table = {"adapters": [{"name": "a", "weight": 0.5}, {"name": "b"}, "c"]}
    assert parse(table).stacks == {"mine": (("a", 0.5), ("b", 1.0), ("c", 1.0))}
    weights = {"adapters": [{"name": "a", "weight": {"q_proj": 0.5}}]}
    assert parse(weights).stacks == {"mine": (("a", {"q_proj": 0.5}),)}


def test_a_method_makes_a_derived_adapter() -> None:
    table = {"method": "ties", "sources": ["a", {"name": "b", "weight": -1}], "density": 0.2}
    found = parse(table | {"rank": 8})
    assert found.stacks == {}
    assert found.derived["mine"] == Derivation(
        method="ties", sources=(Source("a"), Source("b", -1)), density=0.2, rank=8
    )


def test_a_stack_reads_as_it_is_written() -> None:
    for text in ("a:0.5+b", "a", "a:-2+b:0.25"):
        assert show_stack(parse(text).stacks["mine"]) == text
    assert show_stack((("a", {"q_proj": 0.5}), ("b", 1.0))) == "a:{q_proj:0.5}+b"


def test_a_fusion_has_a_stack_of_its_own() -> None:
    found = parse({"fusion": {"method": "proxy", "experts": ["a"], "anchor": "demo"}})
    assert found.stacks == {"mine": ()}
    assert str(found.fusions["mine"]) == "proxy(a, anchor=demo)"
    table = {"adapters": ["b"], "fusion": {"method": "guidance", "anchor": {"system": ""}}}
    assert parse(table).stacks == {"mine": (("b", 1.0),)}
    assert str(parse(table).fusions["mine"]) == "guidance(anchor=itself)"


def test_a_recipe_may_rerank_a_stack_or_the_base_or_a_fusion() -> None:
    rerank = {"scorer": "judge", "candidates": 8}
    for table, stack in [({}, ()), ({"adapters": ["b"]}, (("b", 1.0),))]:
        found = parse(table | {"rerank": rerank})
        assert found.stacks == {"mine": stack}
        assert found.reranks == {"mine": RerankSpec(8, "judge")}
    fused = parse({"fusion": {"method": "sum", "experts": ["a"]}, "rerank": {}})
    assert fused.fusions.keys() == fused.reranks.keys() == fused.stacks.keys()


BAD = [
    ("a:x", "not a number"),
    ("{", "Expecting"),
    ({}, "'adapters'"),
    ({"adapters": []}, "no list"),
    ({"adapters": ["a"], "rank": 3}, "'rank'"),
    ({"adapters": [3]}, "names no adapter"),
    ({"adapters": [{"name": "a", "wieght": 1}]}, "'wieght'"),
    ({"adapters": [{"name": "a", "weight": "1"}]}, "weight of 'a'"),
    ({"adapters": [{"name": "a", "weight": {"q_proj": None}}]}, "weight of 'a'"),
    ({"method": "ties", "density": 0.5}, "'sources'"),
    ({"fusion": {"method": "proxies"}}, "fusion.method"),
    ({"fusion": {"method": "sum", "expert": ["a"]}}, "'fusion.expert' is not known"),
    ({"fusion": {"method": "sum", "experts": [3]}}, "fusion.experts[0]"),
    ({"fusion": {"method": "sum"}, "density": 1}, "'density'"),
    ({"rerank": {"scorer": 3}}, "rerank.scorer"),
    ({"rerank": {"candidates": 200}}, "rerank.candidates"),
    ({"rerank": {"template": "x"}}, "'rerank.template' is not known"),
    ({"rerank": {}, "method": "ties", "sources": ["a"]}, "rerank"),
    ({"method": "blend", "sources": ["a"], "x": 1}, "'blend'"),
    ({"method": ["ties"], "sources": ["a"]}, "is none of"),
    ({"method": "ties", "sources": ["a"]}, "density"),
    ({"method": "ties", "sources": ["a"], "density": "x"}, "density"),
    ({"method": "sum", "sources": ["a"], "seed": 1}, "'seed'"),
    ({"method": "sum", "sources": [{"name": "a", "weight": {"q_proj": 1}}]}, "a table"),
    ({"method": "sum", "sources": [{"name": "a", "weight": 99}]}, "±16"),
]


@pytest.mark.parametrize(("value", "why"), BAD, ids=str)
def test_errors_name_the_recipe(value: object, why: str) -> None:
    with pytest.raises(StartupError) as caught:
        parse(value)
    assert "'mine'" in caught.value.what
    assert why in caught.value.why


def test_names_must_be_names() -> None:
    with pytest.raises(StartupError, match="'a\\+b'"):
        parse("a", "a+b")
