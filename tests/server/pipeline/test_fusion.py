from __future__ import annotations

import pytest

from turret_server.engine.messages import AdapterUse, Member
from turret_server.errors import BadRequest
from turret_server.pipeline.fusion import FusedRecipe, FusionSpec, MemberSpec, check, term_weights
from turret_server.pipeline.recipe import Recipe

BASE = Recipe("base", (), "base", "base")
SQL = Recipe("sql", (AdapterUse("sql"),), "sql", "sql")
SMALL = Recipe("small", (), "small", "small", auxiliary="small")


def member(name: str = "x", **fields) -> MemberSpec:
    return MemberSpec(model=name, **fields)


def test_equal_members_are_one_and_models_are_told_apart():
    spec = FusionSpec(method="sum", experts=(member(),) * 4, weights=(1.0,) * 5, temperature=0.5)
    fused = FusedRecipe(spec, (BASE, SMALL, SQL, BASE), term_weights(spec))
    found = fused.message(BASE, [1], [[1], [1], [1], [2]])
    assert found.members == (
        Member(prompt=[1], model="small"),
        Member(prompt=[1], adapters=SQL.adapters),
        Member(prompt=[2]),
    )
    assert found.terms == (0, 0, 1, 2, 3)
    assert found.temperatures == (0.5, 1.0, 1.0, 1.0, 1.0)


def test_what_has_no_weight_does_not_run():
    """But for the first, by which tokens are plausible, and for weights that are to be found."""
    spec = FusionSpec(method="sum", experts=(member(), member()), weights=(0.0, 0.0, 2.0))
    found = FusedRecipe(spec, (SQL, SMALL), term_weights(spec)).message(BASE, [1], [[1], [1]])
    assert (found.terms, found.weights) == ((0, 1), (0.0, 2.0))
    assert found.members == (Member(prompt=[1], model="small"),)
    spec = FusionSpec(method="dynamic", anchor=member(), experts=(member(),))
    found = FusedRecipe(spec, (BASE, SQL), term_weights(spec)).message(BASE, [1], [[1], [1]])
    assert (found.terms, found.limit) == ((0, 0, 1), 2.0)


def test_weights_are_of_sum_one_by_default_where_they_mix():
    for method in ("product", "mixture"):
        spec = FusionSpec(method=method, experts=(member(),) * 3)
        assert term_weights(spec) == (0.25,) * 4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_members_are_counted_with_the_request_s_own(most):
    spec = FusionSpec(method="proxy", anchor=member(), experts=(member(),))
    if most == 3:
        check(spec, most)
    else:
        with pytest.raises(BadRequest, match="has 3 members"):
            check(spec, most)


def test_a_fusion_reads_as_it_is_asked_for():
    spec = FusionSpec(
        method="proxy", anchor=MemberSpec(system=""), experts=(member("a", adapters=(("b", 1.0),)),)
    )
    assert str(spec) == "proxy(a+b, anchor=itself)"
