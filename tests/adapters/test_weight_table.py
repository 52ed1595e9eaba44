"""What a table of weights means, and which tables mean nothing."""

import pytest

from turret_adapters.spec import Module
from turret_adapters.weight_table import BadWeightTable, expand, numbers_of

TARGETS = ["q_proj", "v_proj", "up_proj", "lm_head"]
ALL = [str(module) for module in Module]


def at(table, module, layer=0, targets=TARGETS, num_layers=4):
    """The weight at one place."""
    weight = expand(table, targets, num_layers)
    value = weight[module] if isinstance(weight, dict) else weight
    return value[layer] if isinstance(value, tuple) else value


def test_what_nobody_names_has_weight_1():
    assert expand({"q_proj": 0.5}, TARGETS, 4) == {
        "q_proj": 0.5,
        "v_proj": 1.0,
        "up_proj": 1.0,
        "lm_head": 1.0,
    }


def test_a_star_names_everything():
    assert expand({"*": 0.5}, ALL, 4) == 0.5
    assert expand({"*": 0.5, "lm_head": 2}, ["q_proj", "lm_head"], 4) == {
        "q_proj": 0.5,
        "lm_head": 2.0,
    }


def test_groups():
    table = {"self_attn": 0.5, "mlp": 0.25}
    found = expand(table, ALL, 4)
    assert isinstance(found, dict)
    assert {m for m, w in found.items() if w == 0.5} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "attention",
    }  # fmt: skip
    assert {m for m, w in found.items() if w == 0.25} == {
        "gate_proj", "up_proj", "down_proj", "act_fn", "mlp_inner",
    }  # fmt: skip


def test_layers_count_from_0_and_both_ends_belong():
    found = expand({"layers.1-2": 0.5, "layers.3.v_proj": 0}, TARGETS, 4)
    assert found == {
        "q_proj": (1.0, 0.5, 0.5, 1.0),
        "v_proj": (1.0, 0.5, 0.5, 0.0),
        "up_proj": (1.0, 0.5, 0.5, 1.0),
        "lm_head": 1.0,
    }


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ("q_proj", "self_attn"),
        ("q_proj", "layers.0"),
        ("q_proj", "layers.0.self_attn"),
        ("self_attn", "*"),
        ("self_attn", "layers.0"),
        ("layers.0", "*"),
        ("layers.0", "layers.0-1"),
        ("layers.0-3", "*"),
        ("layers.0.q_proj", "q_proj"),
        ("layers.0-3.q_proj", "q_proj"),
        ("layers.0-1.q_proj", "layers.0-2.q_proj"),
        ("layers.0.self_attn", "self_attn"),
    ],
)
def test_the_more_specific_key_holds_in_any_order(winner, loser):
    assert at({winner: 0.5, loser: 2}, "q_proj") == 0.5
    assert at({loser: 2, winner: 0.5}, "q_proj") == 0.5


def test_equal_numbers_everywhere_are_one_number():
    assert expand({"self_attn": 0, "up_proj": 0, "lm_head": 0}, TARGETS, 4) == 0
    assert expand({"layers.0-1": 2, "layers.2-3": 2}, ["q_proj"], 4) == 2
    assert expand({}, TARGETS, 4) == 1
    assert expand({"*": 0.5}, [], 4) == 1  # it touches nothing


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("qproj", "names no place"),
        ("", "names no place"),
        ("layers", "names no place"),
        ("layers.x", "names no place"),
        ("layers.1-", "names no place"),
        ("layers.-1", "names no place"),
        ("layers.1.", "names no place"),
        ("layers.1.layers.2", "names no place"),
        ("layers.\u0661", "names no place"),
        ("model.layers.1.self_attn.q_proj", "names no place"),
        ("layers.1.*", "names no place"),
        ("x" * 100_000, "names no place"),
        ("layers.4", "the base has 4, from 0 to 3"),
        ("layers.0-4", "the base has 4, from 0 to 3"),
        ("layers.2-1", "names no layers"),
        ("layers.0.lm_head", "lies in no layer"),
        ("k_proj", "the adapter has nothing at 'k_proj'"),
        ("layers.0.k_proj", "the adapter has nothing"),
        ("embed_tokens", "it touches q_proj, v_proj, up_proj, lm_head"),
    ],
)
def test_keys_without_meaning(key, why):
    with pytest.raises(BadWeightTable) as caught:
        expand({key: 0.5}, TARGETS, 4)
    assert why in caught.value.why
    assert caught.value.fix
    assert len(caught.value.why) < 600


def test_a_group_that_the_adapter_does_not_touch():
    with pytest.raises(BadWeightTable, match="nothing at 'mlp'"):
        expand({"mlp": 0.5}, ["q_proj"], 4)


def test_a_misspelt_module_is_guessed():
    with pytest.raises(BadWeightTable) as caught:
        expand({"q_prj": 0.5}, TARGETS, 4)
    assert caught.value.fix == "Did you mean 'q_proj'?"


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ("layers.0-1", "layers.1-2", "layers.1.q_proj"),
        ("layers.2-3.q_proj", "layers.1-2.q_proj", "layers.2.q_proj"),
        ("layers.1", "layers.1-1", "layers.1.q_proj"),
    ],
)
def test_keys_of_which_neither_is_more_specific(one, other, place):
    with pytest.raises(BadWeightTable) as caught:
        expand({one: 0.5, other: 2}, TARGETS, 4)
    assert place in caught.value.why
    assert repr(one) in caught.value.why
    assert repr(other) in caught.value.why


def test_disjoint_ranges_and_modules_may_be_equally_specific():
    assert at({"layers.0": 0.5, "layers.1": 2}, "q_proj", 1) == 2
    assert at({"layers.0.q_proj": 0.5, "layers.0.v_proj": 2}, "v_proj", 0) == 2


def test_all_numbers_of_a_weight():
    assert numbers_of(0.5) == {0.5}
    assert numbers_of({"q_proj": 0.5, "v_proj": (1.0, 0.0)}) == {0.0, 0.5, 1.0}
