"""Rows of pools: placed, read, freed and reused, and nothing else is ever read or written."""

import random

import pytest
import torch

from turret_adapters.banks import low_rank as low_rank_module
from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.offset import OffsetBank
from turret_adapters.banks.rows import RowAllocator
from turret_adapters.banks.scale import ScaleBank
from turret_adapters.banks.split_linear import split_linear
from turret_adapters.banks.threshold import ThresholdBank
from turret_adapters.components import LowRank, Offset, Scale, Threshold
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group, first_column, num_points, point
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels.entries import Entries
from turret_kernels.linear import pack_linear
from turret_kernels.low_rank import ROW_ALIGNMENT

CPU = torch.device("cpu")
SLOTS, ROWS, TOKENS = 4, 32, 7
DIMS = {
    Module.Q: (16, 24),
    Module.K: (16, 8),
    Module.V: (16, 8),
    Module.O: (24, 16),
    Module.GATE: (16, 40),
    Module.UP: (16, 40),
    Module.DOWN: (40, 16),
    Module.EMBED: (50, 16),
    Module.HEAD: (16, 50),
}
SHAPE = ModelShape(2, DIMS)
Q0, K0, V0, V1 = Site(0, Module.Q), Site(0, Module.K), Site(0, Module.V), Site(1, Module.V)
EMBED, HEAD = Site(-1, Module.EMBED), Site(-1, Module.HEAD)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that nobody wrote is NaN: a step that reads it shows."""

    def full(*size, **kwargs):
        size = size[0] if isinstance(size[0], tuple) else size
        return torch.full(size, float("nan"), **kwargs)

    monkeypatch.setattr(low_rank_module.torch, "empty", full)


def make_bank(dtype=torch.float32, rows=ROWS):
    return LowRankBank(SHAPE, SLOTS, rows, CPU, dtype)


def branch(site, rank, dtype=torch.float32):
    fan_in, fan_out = DIMS[site.module]
    a, b = torch.randn(rank, fan_in) / 4, torch.randn(rank, fan_out) / 4
    return LowRank(site, a.to(dtype), b.to(dtype))


def entries(*rows, weights=None):
    """From (slot, weight, first row, rows)."""
    slot, weight, start, count = zip(*rows, strict=True)
    ints = [torch.tensor(x, dtype=torch.int32) for x in (slot, start, count)]
    by_site = None if weights is None else torch.stack([weights[m] for m in Module]).repeat(2, 1)
    return Entries(ints[0], torch.tensor(weight, dtype=torch.float32), *ints[1:], by_site)


def expected(y, x, uses, components_of, weights=None):
    """The formula, in float64, column slices included."""
    y = y.double()
    for i, (slot, weight, start, count) in enumerate(uses):
        for part in components_of[slot]:
            w = weight if weights is None else float(weights[part.site.module][i])
            rows = x[start : start + count]
            a, b = part.a.double(), part.b.double()
            hidden = a.T[rows] if part.site.module is Module.EMBED else rows.double() @ a.T
            column = first_column(SHAPE, part.site.module)
            y[start : start + count, column : column + b.shape[1]] += w * hidden @ b
    return y


USES = [(0, 1.0, 0, 2), (1, -0.5, 2, 3), (2, 2.0, 2, 3)]  # rows 2 to 4 are stacked, 5 and 6 bare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_ranks_and_targets_in_one_call(dtype):
    bank = make_bank(dtype)
    adapters = {
        0: [branch(Q0, 3, dtype), branch(K0, 8, dtype)],
        1: [branch(V0, 1, dtype), branch(V1, 4, dtype)],
        2: [branch(Q0, 16, dtype), branch(V0, 5, dtype), branch(V0, 2, dtype)],
    }
    for slot, components in adapters.items():
        assert bank.put(slot, components)
    x, y = torch.randn(TOKENS, 16).to(dtype), torch.randn(TOKENS, 40).to(dtype)
    in_layer_0 = {s: [c for c in parts if c.site.layer == 0] for s, parts in adapters.items()}
    want = expected(y, x, USES, in_layer_0)
    bare = y[5:].clone()
    bank.apply(0, Group.QKV, y, x, entries(*USES))
    # bf16: products of order one are rounded to 8 bits twice.
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(y[5:], bare)


def test_weights_per_module():
    bank = make_bank()
    adapters = {0: [branch(Q0, 3), branch(V0, 2)], 1: [branch(V0, 4)], 2: [branch(Q0, 2)]}
    for slot, components in adapters.items():
        bank.put(slot, components)
    weights = {module: torch.rand(len(USES)) for module in Module}
    x, y = torch.randn(TOKENS, 16), torch.randn(TOKENS, 40)
    want = expected(y, x, USES, adapters, weights)
    bank.apply(0, Group.QKV, y, x, entries(*USES, weights=weights))
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_embedding_gathers_columns():
    bank = make_bank()
    adapters = {0: [branch(EMBED, 3)], 1: [], 2: [branch(EMBED, 4), branch(EMBED, 1)]}
    for slot, components in adapters.items():
        bank.put(slot, components)
    ids, y = torch.randint(50, (TOKENS,)), torch.randn(TOKENS, 16)
    want = expected(y, ids, USES, adapters)
    bank.apply(-1, Group.EMBED, y, ids, entries(*USES))
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_head():
    bank = make_bank()
    adapters = {0: [branch(HEAD, 3)], 1: [], 2: []}
    bank.put(0, adapters[0])
    x, y = torch.randn(TOKENS, 16), torch.randn(TOKENS, 50)
    want = expected(y, x, USES, adapters)
    bank.apply(-1, Group.HEAD, y, x, entries(*USES))
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_pools_exist_only_where_adapters_act():
    bank = make_bank()
    bank.put(0, [branch(Q0, 3)])
    assert list(bank._sites) == [Q0]
    assert bank.touched[0] == 1 << point(0, Group.QKV)


def test_nothing_of_an_adapter_that_does_not_fit_remains():
    bank = make_bank(rows=8)
    assert bank.put(0, [branch(Q0, 4), branch(V0, 6)])
    assert not bank.put(1, [branch(K0, 2), branch(Q0, 4), branch(V0, 4)])
    assert bank.touched[1] == 0
    assert {site: pool.rows.used for site, pool in bank._sites.items()} == {Q0: 4, V0: 6, K0: 0}
    assert bank.put(1, [branch(Q0, 4), branch(V0, 2)])


def test_a_larger_rank_changes_the_layout():
    """Kernels of a GPU are launched for the largest rank, and one more if there are mixtures."""
    bank = make_bank()
    bank.put(0, [branch(Q0, 4)])
    layout = bank.layout
    bank.put(1, [branch(Q0, 3)])
    assert bank.layout == layout
    bank.put(2, [branch(Q0, 5)])
    assert bank.layout == layout + 1
    bank.clear(2)
    part = branch(Q0, 4)
    bank.put(2, [LowRank(part.site, part.a, part.b, num_experts=2)])
    assert bank.layout == layout + 2


def test_nothing_remains_after_an_error(monkeypatch):
    bank = make_bank()

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(low_rank_module, "write_rank_rows", fail)
    with pytest.raises(MemoryError):
        bank.put(0, [branch(Q0, 4)])
    assert bank.rows_used == 0
    assert bank.touched[0] == 0


def test_rows_are_reused_and_the_neighbours_stay():
    bank = make_bank(rows=12)
    keep, first, second = [branch(Q0, 4)], [branch(Q0, 4)], [branch(Q0, 6)]
    bank.put(0, first)
    bank.put(1, keep)
    bank.clear(0)
    assert not bank.put(2, second)  # 8 rows are free, but not together
    bank.clear(1)
    assert bank.put(2, second)
    assert bank.put(1, keep)
    x = torch.randn(TOKENS, 16)
    y = torch.zeros(TOKENS, 40)
    uses = [(1, 1.0, 0, 3), (0, 1.0, 0, 3), (2, 1.0, 3, 4)]  # slot 0 is empty
    want = expected(y, x, uses, {0: [], 1: keep, 2: second})
    bank.apply(0, Group.QKV, y, x, entries(*uses))
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_what_can_never_fit_is_refused_with_the_flag():
    bank = make_bank(rows=8)
    bank.check_fits([bank.demand([branch(Q0, 7)])])
    with pytest.raises(AdapterUnsupported, match="--adapter-rank-rows 10"):
        bank.check_fits([bank.demand([branch(Q0, 9)])])
    with pytest.raises(AdapterUnsupported, match="together"):
        bank.check_fits([bank.demand([branch(Q0, 4)]), bank.demand([branch(Q0, 5)])])


class TestOffsets:
    def make(self, bias=None, dtype=torch.float32):
        return OffsetBank(SHAPE, SLOTS, CPU, lambda site: bias)

    def test_added_to_the_columns_of_their_module(self):
        bank = self.make()
        q, v = torch.randn(24), torch.randn(8)
        bank.put(0, [Offset(Q0, q), Offset(V0, v)])
        bank.put(1, [Offset(V0, -v), Offset(V0, 3 * v)])
        y = torch.zeros(TOKENS, 40)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 2), (1, 0.5, 1, 1), (2, 1.0, 3, 4)))
        torch.testing.assert_close(y[0], torch.cat([q, torch.zeros(8), v]))
        torch.testing.assert_close(y[1], torch.cat([q, torch.zeros(8), 2 * v]))
        assert not y[2:].any()

    def test_absolute_offsets_replace_the_bias(self):
        bias, vector = torch.randn(24), torch.randn(24)
        bank = self.make(bias)
        bank.put(0, [Offset(Q0, vector, absolute=True)])
        y = bias.repeat(TOKENS, 1)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 3)))
        torch.testing.assert_close(y[:3], vector.expand(3, 24))
        torch.testing.assert_close(y[3:], bias.expand(4, 24))

    def test_other_offsets_leave_the_bias(self):
        bank = self.make(torch.full((24,), 5.0))
        bank.put(0, [Offset(Q0, torch.ones(24)), Offset(Q0, torch.full((24,), 7.0), True)])
        y = torch.full((1, 24), 5.0)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        assert y.unique().tolist() == [8.0]  # 7 instead of the bias, and 1

    def test_the_difference_is_rounded_not_the_bias(self):
        bias = torch.full((24,), 100.0)
        bank = self.make(bias.bfloat16(), torch.bfloat16)
        bank.put(0, [Offset(Q0, bias + 0.001, absolute=True)])
        y = torch.zeros(1, 24)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        torch.testing.assert_close(y, torch.full((1, 24), 0.001), rtol=2**-7, atol=0)

    def test_cleared_slots_hold_zeros(self):
        bank = self.make()
        bank.put(0, [Offset(Q0, torch.ones(24))])
        bank.clear(0)
        assert bank.touched[0] == 0
        bank.put(0, [Offset(K0, torch.ones(8))])
        y = torch.zeros(1, 40)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        assert y[0].nonzero().flatten().tolist() == list(range(24, 32))

    def test_weights_per_module(self):
        bank = self.make()
        bank.put(0, [Offset(Q0, torch.ones(24)), Offset(V0, torch.ones(8))])
        y = torch.zeros(1, 40)
        weights = {m: torch.tensor([3.0 if m is Module.V else 0.5]) for m in Module}
        bank.apply(0, Group.QKV, y, y, entries((0, 9.0, 0, 1), weights=weights))
        assert y[0].unique().tolist() == [0.0, 0.5, 3.0]

    def test_at_an_activation(self):
        bank = self.make()
        heads = Site(1, Module.HEADS)
        bank.put(0, [Offset(heads, torch.ones(24))])
        y = torch.zeros(3, 24)
        bank.apply(1, Group.HEADS, y, y, entries((0, 0.5, 1, 1)))
        assert y.unique(dim=0).tolist() == [[0.0] * 24, [0.5] * 24]
        assert bank.touched[0] == 1 << point(1, Group.HEADS)


class TestScales:
    def make(self, before_deltas=False):
        return ScaleBank(SHAPE, SLOTS, CPU, before_deltas)

    def test_the_columns_of_their_module(self):
        bank = self.make()
        q, v, turn = torch.rand(24), torch.rand(8), torch.rand(8)
        bank.put(0, [Scale(Q0, q), Scale(V0, v, turn, 2)])
        bank.put(1, [Scale(K0, v)])
        y = torch.randn(TOKENS, 40)
        want = y.clone()
        want[:2, :24] *= q
        pairs = want[:2, 32:].view(2, 2, 2, 2).flip(2).reshape(2, 8)
        want[:2, 32:] = want[:2, 32:] * v + turn * pairs
        want[1, 24:32] += 0.5 * (v - 1) * want[1, 24:32]
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 2), (1, 0.5, 1, 1)))
        torch.testing.assert_close(y, want)

    def test_weights_per_module(self):
        bank = self.make()
        bank.put(0, [Scale(Q0, torch.full((24,), 3.0)), Scale(V0, torch.full((8,), 3.0))])
        y = torch.ones(1, 40)
        weights = {m: torch.tensor([0.0 if m is Module.V else 2.0]) for m in Module}
        bank.apply(0, Group.QKV, y, y, entries((0, 9.0, 0, 1), weights=weights))
        assert y[0].tolist() == [5.0] * 24 + [1.0] * 16

    def test_a_slot_that_no_longer_turns(self):
        """The table still holds the rotation of the adapter before."""
        bank = self.make()
        bank.put(0, [Scale(Q0, torch.ones(24), torch.ones(24), 4)])
        bank.clear(0)
        bank.put(0, [Scale(Q0, torch.full((24,), 2.0))])
        y = torch.ones(1, 40)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        assert y[0].tolist() == [2.0] * 24 + [1.0] * 16

    def test_cleared_slots_do_nothing(self):
        bank = self.make()
        bank.put(0, [Scale(Q0, torch.zeros(24))])
        bank.clear(0)
        assert bank.touched[0] == 0
        y = torch.ones(1, 40)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        assert (y == 1).all()

    def test_two_at_one_site_are_refused(self):
        bank = self.make()
        one, other = [Scale(Q0, torch.ones(24))], [Scale(K0, torch.ones(8))]
        bank.check_fits([bank.demand(one), bank.demand(other)])
        with pytest.raises(AdapterUnsupported, match=r"two of them scale layers\.0\.q_proj"):
            bank.check_fits([bank.demand(one), bank.demand([*one, *other])])

    def test_each_bank_takes_its_own(self):
        first, last = self.make(before_deltas=True), self.make()
        before = Scale(Q0, torch.ones(24), before_deltas=True)
        after = Scale(Q0, torch.ones(24))
        assert [first.takes(before), first.takes(after)] == [True, False]
        assert [last.takes(before), last.takes(after)] == [False, True]

    def test_nothing_remains_after_an_error(self):
        bank = self.make()
        with pytest.raises(RuntimeError):
            bank.put(0, [Scale(Q0, torch.ones(24)), Scale(V0, torch.ones(7))])
        assert bank.touched[0] == 0
        y = torch.ones(1, 40)
        bank.apply(0, Group.QKV, y, y, entries((0, 1.0, 0, 1)))
        assert (y == 1).all()


class TestThresholds:
    def make(self, dtype=torch.float32, shape=SHAPE):
        return ThresholdBank(shape, SLOTS, CPU, dtype, 0)

    def test_behind_the_gate(self):
        bank = self.make()
        bank.put(0, [Threshold(Site(0, Module.ACT), 0.5)])
        gate, up = torch.randn(2, TOKENS, 40)
        y = bank.gate(
            0, torch.cat([gate, up], dim=1), entries((0, 1.0, 0, 2), (1, 1.0, 3, 1)), "silu"
        )
        act = torch.nn.functional.silu(gate)
        act[:2] = torch.where(act[:2].abs() > 0.5, act[:2], 0)
        torch.testing.assert_close(y, act * up)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("biased", [False, True])
    def test_each_linear_of_a_group_reads_its_own_input(self, dtype, biased):
        """Widths that are multiples of 16, and such that are not."""
        for q, k in ((32, 16), (24, 8)):
            dims = {Module.Q: (32, q), Module.K: (32, k), Module.V: (32, k)}
            shape = ModelShape(1, dims)
            bank = self.make(dtype, shape)
            bank.put(1, [Threshold(Q0, 0.5), Threshold(V0, 1.0)])
            weight = torch.randn(q + 2 * k, 32).to(dtype)
            bias = torch.randn(q + 2 * k).to(dtype) if biased else None
            x = torch.randn(TOKENS, 32).to(dtype)
            changed: dict[Module, torch.Tensor] = {}
            bank.change_inputs(0, Group.QKV, x, changed, entries((1, 1.0, 2, 3)))
            assert changed.keys() == {Module.Q, Module.V}
            y = split_linear(shape, Group.QKV, x, changed, pack_linear(weight), bias)
            inputs = {module: x.double() for module in (Module.Q, Module.K, Module.V)}
            for module, bound in ((Module.Q, 0.5), (Module.V, 1.0)):
                inputs[module] = inputs[module].clone()
                part = inputs[module][2:5]
                part[part.abs() <= bound] = 0
            parts = weight.double().split([q, k, k])
            want = torch.cat([i @ w.T for i, w in zip(inputs.values(), parts, strict=True)], 1)
            want = want if bias is None else want + bias.double()
            tolerance = 1e-5 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)

    def test_cleared_slots_keep_everything(self):
        bank = self.make()
        bank.put(0, [Threshold(Site(0, Module.ACT), 10.0)])
        bank.clear(0)
        assert bank.touched[0] == 0
        gate_up = torch.randn(3, 80)
        y = bank.gate(0, gate_up, entries((0, 1.0, 0, 3)), "silu")
        assert torch.equal(y, torch.nn.functional.silu(gate_up[:, :40]) * gate_up[:, 40:])

    def test_two_at_one_site_are_refused(self):
        bank = self.make()
        demand = bank.demand([Threshold(Site(1, Module.ACT), 0.1)])
        with pytest.raises(AdapterUnsupported, match="two of them threshold"):
            bank.check_fits([demand, demand])


class TestDeviceBanks:
    def make(self, rows=8):
        return DeviceBanks(SHAPE, SLOTS, rows, CPU, torch.float32, lambda site: None)

    def test_all_or_nothing_over_all_banks(self, monkeypatch):
        banks = self.make()
        parts = [Offset(Q0, torch.ones(24)), branch(Q0, 2)]
        monkeypatch.setattr(banks.threshold, "put", lambda slot, parts: False)
        assert not banks.put(0, parts)
        assert banks.low_rank.rows_used == 0
        assert all(bank.touched[0] == 0 for bank in banks.acting)

    def test_unknown_primitives(self):
        class Strange:
            site = Q0

        with pytest.raises(AdapterUnsupported, match="Strange"):
            self.make().demand([Strange()])

    def test_more_adapters_than_slots(self):
        banks = self.make()
        demand = banks.demand([Offset(Q0, torch.ones(24))])
        banks.check_fits([demand] * SLOTS)
        with pytest.raises(AdapterUnsupported, match="--max-resident-adapters 5"):
            banks.check_fits([demand] * (SLOTS + 1))


class TestRowAllocator:
    def test_lowest_range_first(self):
        rows = RowAllocator(10)
        assert [rows.allocate(n) for n in (3, 4, 3, 1)] == [0, 3, 7, None]
        rows.release(3, 4)
        assert rows.allocate(2) == 3

    @pytest.mark.parametrize("order", [(0, 3, 7), (7, 3, 0), (3, 0, 7), (0, 7, 3)])
    def test_neighbours_merge(self, order):
        rows = RowAllocator(10)
        taken = {0: 3, 3: 4, 7: 3}
        for start, count in taken.items():
            assert rows.allocate(count) == start
        for start in order:
            rows.release(start, taken[start])
        assert rows.used == 0
        assert rows.allocate(10) == 0

    def test_random_use_never_overlaps(self):
        random.seed(0)
        rows, held = RowAllocator(64), {}
        for _ in range(3000):
            if held and random.random() < 0.5:
                start = random.choice(list(held))
                rows.release(start, held.pop(start))
            else:
                count = random.randint(1, 20)
                start = rows.allocate(count)
                free = sorted(
                    set(range(64)) - {r for s, n in held.items() for r in range(s, s + n)}
                )
                fits = [r for r in free if set(range(r, r + count)) <= set(free)]
                assert start == (fits[0] if fits else None)
                if start is not None:
                    held[start] = count
            assert rows.used == sum(held.values())


def test_starts_are_aligned_for_the_kernel():
    bank = make_bank()
    for slot, rank in enumerate((1, 3, 5)):
        bank.put(slot, [branch(Q0, rank)])
    pool = bank._sites[Q0].pool
    assert all(start % ROW_ALIGNMENT == 0 for start in pool.start.tolist())
    assert pool.count.tolist() == [1, 3, 5, 0]


def test_points_are_distinct():
    points = [point(layer, group) for layer in (-1, 0, 1) for group in Group]
    assert sorted(points) == list(range(num_points(SHAPE)))
