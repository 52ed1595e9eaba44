"""Adapters of two bits a value: recognised, placed beside dense ones, and computing the same."""

import pytest
import torch
from tests.adapters.test_sharding import SHAPE as SHARDED

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.ternary import TernaryBank
from turret_adapters.components import LowRank, Offset, TernaryLowRank
from turret_adapters.compress.compeft import compress
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.loading import read_adapter
from turret_adapters.plan import RowUse, StepPlan
from turret_adapters.sharding import Shard, shard_components
from turret_adapters.spec import ModelShape, Module, Site
from turret_adapters.ternary import as_ternary
from turret_kernels.ternary_low_rank import unpack_ternary

CPU = torch.device("cpu")
SLOTS, ROWS, TOKENS = 4, 16, 7
DIMS = {
    Module.Q: (128, 192),
    Module.K: (128, 64),
    Module.V: (128, 64),
    Module.O: (192, 128),
    Module.EMBED: (50, 128),
    Module.HEAD: (128, 50),
}
SHAPE = ModelShape(2, DIMS)
Q0, K0, V1 = Site(0, Module.Q), Site(0, Module.K), Site(1, Module.V)
EMBED, HEAD = Site(-1, Module.EMBED), Site(-1, Module.HEAD)


def branch(site, rank, shape=SHAPE, scales=(0.5, 0.25)):
    """A branch that ComPEFT could have made."""
    a, b = (
        torch.randint(-1, 2, (rank, width)) * scale
        for width, scale in zip(shape.size(site.module), scales, strict=True)
    )
    return LowRank(site, a, b)


def dense(component):
    """The factors that a ternary branch stands for; its scale on one of them."""
    a, b = (
        unpack_ternary(words, width).float()
        for words, width in (
            (component.a, component.in_features),
            (component.b, component.out_features),
        )
    )
    return LowRank(component.site, a, b * component.scale[:, None])


def change(component):
    return component.b.T @ component.a


@pytest.mark.parametrize("site", [Q0, HEAD], ids=str)
def test_a_ternary_branch_is_recognised(site):
    source = branch(site, 3)
    source.a[1] *= 3  # scales are by rank
    source.b[2] = 0
    packed = as_ternary(source)
    assert isinstance(packed, TernaryLowRank)
    assert packed.rank == 3
    assert packed.num_parameters == source.num_parameters
    assert torch.equal(change(dense(packed)), change(source))


def test_what_is_not_ternary_stays_as_it_is():
    a, b = torch.randn(2, 128), torch.randn(2, 192)
    ternary = branch(Q0, 2)
    almost = LowRank(Q0, ternary.a.clone(), ternary.b)
    almost.a[1, 5] = 0.4
    others = [
        LowRank(Q0, a, b),
        LowRank(Q0, ternary.a, b),
        LowRank(Q0, a, torch.zeros_like(b)),
        almost,
        LowRank(Q0, ternary.a, ternary.b, num_experts=1),
        branch(EMBED, 2),
        LowRank(Site(0, Module.BLOCK), ternary.a, ternary.a),
        Offset(Q0, torch.ones(192)),
    ]
    for component in others:
        assert as_ternary(component) is component


def test_a_compressed_folder_is_kept_in_two_bits_where_that_is_asked_for(folder, tmp_path, shape):
    compress(folder, tmp_path / "small", density=0.3)
    digest, program = read_adapter(tmp_path / "small", shape, torch.bfloat16, keep_ternary=True)
    found, unpacked = read_adapter(tmp_path / "small", shape, torch.float32)
    assert found == digest
    assert program.primitives == ["TernaryLowRank"]
    assert unpacked.primitives == ["LowRank"]
    assert program.num_parameters == unpacked.num_parameters
    for component, other in zip(program.components, unpacked.components, strict=True):
        torch.testing.assert_close(change(dense(component)), change(other))


def test_dense_and_ternary_adapters_in_one_batch():
    """Alone, stacked in either order, with weights, and beside rows of the base."""
    banks = DeviceBanks(
        SHAPE, SLOTS, ROWS, CPU, torch.float32, lambda site: None, max_ternary_rows=ROWS
    )
    sources = [
        [branch(Q0, 3), branch(K0, 2), branch(V1, 1), branch(HEAD, 2)],
        [LowRank(Q0, torch.randn(4, 128), torch.randn(4, 192)), branch(Q0, 2)],
        [branch(Q0, 1), branch(Q0, 4), branch(HEAD, 3)],
    ]
    for slot, components in enumerate(sources):
        assert banks.put(slot, [as_ternary(c) for c in components])
    uses = [
        RowUse(0, 2, (0,), (1.0,)),
        RowUse(2, 1, (1, 0), (0.5, -2.0)),
        RowUse(4, 3, (2, 1), (1.0, 0.25)),
    ]
    plan = StepPlan(banks, uses)
    for group, width in ((Group.QKV, 320), (Group.HEAD, 50)):
        x, y = torch.randn(TOKENS, 128), torch.randn(TOKENS, width)
        want = y.double()
        for use in uses:
            rows = slice(use.row_start, use.row_start + use.row_count)
            for slot, weight in zip(use.slots, use.weights, strict=True):
                for c in sources[slot]:
                    if Group.of(c.site.module) is group and c.site.layer < 1:
                        column = 192 if c.site.module is Module.K else 0
                        delta = weight * (x[rows].double() @ change(c).double().T)
                        want[rows, column : column + delta.shape[1]] += delta
        if group is Group.HEAD:
            plan.head(y, x)
        else:
            plan.apply(0, group, y, x)
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-4)


def test_rows_are_freed_and_counted_apart_from_the_others():
    banks = DeviceBanks(SHAPE, SLOTS, 4, CPU, torch.float32, lambda site: None, max_ternary_rows=4)
    ternary = [as_ternary(branch(Q0, 3))]
    assert banks.put(0, [branch(Q0, 4)])
    assert banks.put(1, ternary)
    assert not banks.put(2, ternary)
    banks.clear(1)
    assert banks.put(2, ternary)
    with pytest.raises(AdapterUnsupported, match="--adapter-ternary-rows 8"):
        banks.check_fits([banks.demand(ternary)] * 2)


def test_eight_times_as_many_ranks_in_the_same_bytes():
    """But for the scale of a rank, which is one number."""
    site = Site(0, Module.Q)
    wide = ModelShape(1, {Module.Q: (4096, 4096)})
    packed = TernaryBank(wide, SLOTS, 80, CPU)
    whole = LowRankBank(wide, SLOTS, 10, CPU, torch.bfloat16)
    of_packed = packed.make_pool(site, 80, torch.zeros(3, SLOTS))
    of_whole = whole.make_pool(site, 10, torch.zeros(3, SLOTS))
    spent = of_packed.a.nbytes + of_packed.b.nbytes
    assert spent == of_whole.a.nbytes + of_whole.b.nbytes
    assert of_packed.scale.nbytes == 80 * 4


@pytest.mark.parametrize("module", [Module.Q, Module.DOWN, Module.HEAD])
def test_shards_are_parts_of_the_change(module):
    site = Site(-1 if module is Module.HEAD else 0, module)
    source = branch(site, 3, SHARDED)
    parts = [shard_components([as_ternary(source)], Shard(rank, 3), SHARDED) for rank in range(3)]
    changes = [change(dense(part)) for shard in parts for part in shard]
    whole = torch.cat(changes, 1 if module is Module.DOWN else 0)
    assert torch.equal(whole, change(source))
