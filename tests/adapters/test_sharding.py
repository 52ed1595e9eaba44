"""What the shards of a component do together is what the component does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turret_adapters.components import (
    Component,
    InputRotation,
    LowRank,
    Offset,
    Prefix,
    RowDelta,
    Scale,
    SoftPrompt,
    SparseDelta,
    Threshold,
)
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.sharding import Shard, shard_components
from turret_adapters.spec import ModelShape, Module, Site

HIDDEN, HEADS, KV, INNER, VOCAB = 12, 24, 12, 36, 40
WORLD = 3
SHAPE = ModelShape(
    1,
    {
        Module.Q: (HIDDEN, HEADS),
        Module.K: (HIDDEN, KV),
        Module.V: (HIDDEN, KV),
        Module.O: (HEADS, HIDDEN),
        Module.GATE: (HIDDEN, INNER),
        Module.UP: (HIDDEN, INNER),
        Module.DOWN: (INNER, HIDDEN),
        Module.EMBED: (VOCAB, HIDDEN),
        Module.HEAD: (HIDDEN, VOCAB),
    },
)
BY_OUTPUTS = [Module.Q, Module.K, Module.V, Module.GATE, Module.UP]
BY_INPUTS = [Module.O, Module.DOWN]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def low_rank(site: Site) -> LowRank:
    fan_in, fan_out = SHAPE.size(site.module)
    return LowRank(site, torch.randn(5, fan_in), torch.randn(5, fan_out))


def sparse(site: Site) -> SparseDelta:
    fan_in, fan_out = SHAPE.size(site.module)
    outputs, inputs = torch.randint(fan_out, (50,)), torch.randint(fan_in, (50,))
    return SparseDelta.from_entries(site, outputs, inputs, torch.randn(50), fan_out)


def offset(site: Site) -> Offset:
    return Offset(site, torch.randn(SHAPE.width(site.module)))


def turned(site: Site) -> Scale:
    width = SHAPE.width(site.module)
    return Scale(site, torch.randn(width), torch.randn(width), distance=2)


def scale(site: Site) -> Scale:
    return Scale(site, torch.randn(SHAPE.width(site.module)))


MAKERS = [low_rank, sparse, offset, scale, turned]


def act(component: Component, y: Tensor, x: Tensor) -> Tensor:
    """A component as its docstring defines it, at weight 1."""
    match component:
        case LowRank():
            return y + x @ component.a.T @ component.b
        case SparseDelta():
            change = torch.zeros(y.shape[1], x.shape[1])
            outputs = torch.arange(y.shape[1]).repeat_interleave(component.rows.diff())
            change.index_put_((outputs, component.columns.long()), component.values, True)
            return y + x @ change.T
        case Offset():
            return y + component.vector
        case Scale(turn=None):
            return y * component.vector
        case Scale():
            groups = y.view(len(y), -1, 2, component.distance)
            return y * component.vector + component.turn * groups.flip(2).reshape(y.shape)
    raise AssertionError(component)


def shards(component: Component) -> list[list[Component]]:
    return [shard_components([component], Shard(rank, WORLD), SHAPE) for rank in range(WORLD)]


def act_all(components: list[Component], y: Tensor, x: Tensor) -> Tensor:
    for component in components:
        y = act(component, y, x)
    return y


@pytest.mark.parametrize("module", BY_OUTPUTS)
@pytest.mark.parametrize("make", MAKERS)
def test_outputs_lie_side_by_side(make, module):
    whole = make(Site(0, module))
    fan_in, fan_out = SHAPE.size(module)
    x, y = torch.randn(4, fan_in), torch.randn(4, fan_out)
    parts = [act_all(s, p, x) for s, p in zip(shards(whole), y.chunk(WORLD, 1), strict=True)]
    torch.testing.assert_close(torch.cat(parts, 1), act(whole, y, x))


@pytest.mark.parametrize("module", BY_INPUTS)
@pytest.mark.parametrize("make", MAKERS)
def test_partial_sums_add_up(make, module):
    whole = make(Site(0, module))
    fan_in, fan_out = SHAPE.size(module)
    x, y = torch.randn(4, fan_in), torch.randn(WORLD, 4, fan_out)
    parts = [
        act_all(shard, partial, part)
        for shard, partial, part in zip(shards(whole), y, x.chunk(WORLD, 1), strict=True)
    ]
    torch.testing.assert_close(sum(parts), act(whole, y.sum(0), x))


@pytest.mark.parametrize("module", [Module.HEADS, Module.ACT, Module.INNER])
@pytest.mark.parametrize("make", [offset, scale, turned])
def test_activations_lie_side_by_side(make, module):
    whole = make(Site(0, module))
    y = torch.randn(4, SHAPE.width(module))
    parts = [act_all(s, p, p) for s, p in zip(shards(whole), y.chunk(WORLD, 1), strict=True)]
    torch.testing.assert_close(torch.cat(parts, 1), act(whole, y, y))


@pytest.mark.parametrize(
    "whole",
    [
        low_rank(Site(0, Module.BLOCK)),
        scale(Site(0, Module.MLP_IN)),
        offset(Site(-1, Module.HEAD_IN)),
        low_rank(Site(-1, Module.EMBED)),
        SoftPrompt(Site(-1, Module.EMBED), torch.randn(3, HIDDEN)),
        RowDelta(Site(-1, Module.EMBED), torch.tensor([2, 7]), torch.randn(2, HIDDEN)),
        Threshold(Site(0, Module.ACT), 0.5),
        Threshold(Site(0, Module.DOWN), 0.5),
        InputRotation(Site(0, Module.Q), torch.randn(3, 4, 4)),
    ],
    ids=lambda whole: f"{type(whole).__name__}-{whole.site.module}",
)
def test_what_every_process_computes_stays_whole(whole):
    for shard in shards(whole):
        (part,) = shard
        assert type(part) is type(whole)
        for one, two in zip(part.tensors, whole.tensors, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("make", [low_rank, sparse])
def test_the_logits_are_those_of_rank_0(make):
    first, *others = shards(make(Site(-1, Module.HEAD)))
    assert len(first) == 1
    assert others == [[], []]


def test_a_prefix_is_cut_by_heads():
    whole = Prefix(Site(0, Module.K), torch.randn(3, KV), torch.randn(3, KV))
    parts = [part for (part,) in shards(whole)]
    assert torch.equal(torch.cat([part.keys for part in parts], 1), whole.keys)
    assert torch.equal(torch.cat([part.values for part in parts], 1), whole.values)


@pytest.mark.parametrize("count", [6, 1])
def test_rotations_of_a_shared_input_are_cut_by_blocks(count):
    blocks = torch.randn(count, 4, 4)
    parts = [part for (part,) in shards(InputRotation(Site(0, Module.O), blocks))]
    every = torch.cat([part.blocks for part in parts]) if count > 1 else parts[2].blocks
    assert torch.equal(every, blocks)


@pytest.mark.parametrize(
    ("component", "why"),
    [
        (low_rank(Site(0, Module.HEADS)), "reads an activation"),
        (
            LowRank(Site(0, Module.DOWN), torch.randn(9, INNER), torch.randn(9, HIDDEN), 3),
            "a mixture's gate",
        ),
        (
            Scale(Site(0, Module.K), torch.ones(KV), torch.ones(KV), distance=6),
            "turns groups of 12 features",
        ),
        (InputRotation(Site(0, Module.O), torch.randn(2, 12, 12)), "rotates blocks of 12 inputs"),
    ],
)
def test_what_cannot_be_cut_is_refused(component, why):
    with pytest.raises(AdapterUnsupported, match=why) as error:
        shards(component)
    assert str(component.site) in error.value.why
    assert "--tensor-parallel" in error.value.fix


def test_parts_that_do_not_divide():
    assert [Shard(rank, 3).of(7) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert [Shard(rank, 4).of(2) for rank in range(4)][2:] == [slice(2, 2), slice(2, 2)]
