"""Sparse deltas and changed rows: within a budget, all or nothing, and gone when cleared."""

import gc
import weakref

import pytest
import torch

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.row_delta import RowDeltaBank
from turret_adapters.banks.sparse_delta import SparseDeltaBank
from turret_adapters.components import LowRank, Offset, RowDelta, Scale, SparseDelta
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.plan import RowUse, StepPlan
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import native
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.linear import linear, pack_linear

CPU, MIB = torch.device("cpu"), 1 << 20
DIMS = {
    Module.Q: (16, 24),
    Module.K: (16, 8),
    Module.V: (16, 8),
    Module.EMBED: (50, 16),
    Module.HEAD: (16, 50),
}
SHAPE = ModelShape(1, DIMS)
Q0, V0 = Site(0, Module.Q), Site(0, Module.V)
EMBED, HEAD = Site(-1, Module.EMBED), Site(-1, Module.HEAD)


def entries(*rows, weights=None):
    slot, weight, start, count = zip(*rows, strict=True)
    ints = [torch.tensor(x, dtype=torch.int32) for x in (slot, start, count)]
    by_site = None if weights is None else torch.stack([weights[m] for m in Module]).repeat(2, 1)
    return Entries(ints[0], torch.tensor(weight), *ints[1:], by_site)


def sparse(site, nnz=20):
    """A change, and the same dense; some entries twice."""
    fan_in, fan_out = DIMS[site.module]
    outputs, inputs = torch.randint(fan_out, (nnz,)), torch.randint(fan_in, (nnz,))
    values = torch.randn(nnz)
    dense = torch.zeros(fan_out, fan_in).index_put_((outputs, inputs), values, accumulate=True)
    return SparseDelta.from_entries(site, outputs, inputs, values, fan_out), dense


def rows(site, *ids):
    return RowDelta(site, torch.tensor(ids), torch.randn(len(ids), 16))


def sparse_bank(max_bytes=MIB, dtype=torch.float32):
    return SparseDeltaBank(SHAPE, 4, max_bytes, CPU, dtype)


def row_bank(max_bytes=MIB):
    return RowDeltaBank(SHAPE, 4, max_bytes, CPU, torch.float32)


class TestComponent:
    def test_from_entries_sorts(self):
        part, dense = sparse(Q0, 200)
        assert part.rows.dtype == torch.int64
        assert part.columns.dtype == torch.int32
        for output in range(24):
            inside = slice(int(part.rows[output]), int(part.rows[output + 1]))
            row = torch.zeros(16).index_add_(0, part.columns[inside], part.values[inside])
            torch.testing.assert_close(row, dense[output])

    def test_served_dtype(self):
        part, _ = sparse(Q0)
        assert part.to(torch.bfloat16).values.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_changes_of_a_group(dtype):
    bank = sparse_bank(dtype=dtype)
    (q, dense_q), (v, dense_v), (other, dense_other) = sparse(Q0), sparse(V0), sparse(V0)
    assert bank.put(1, [q, v, other])  # two at one site add up
    x, y = torch.randn(5, 16).to(dtype), torch.zeros(5, 40).to(dtype)
    bank.apply(0, Group.QKV, y, x, entries((1, 0.5, 1, 3), (0, 1.0, 0, 5)))
    delta = torch.cat([dense_q, torch.zeros(8, 16), dense_v + dense_other])
    expected = torch.zeros(5, 40)
    expected[1:4] = 0.5 * x[1:4].float() @ delta.T
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    weights = {m: torch.tensor([2.0 if m is Module.V else 0.0]) for m in Module}
    y.zero_()
    bank.apply(0, Group.QKV, y, x, entries((1, 9.0, 0, 1), weights=weights))
    assert not y[:, :32].any()
    assert y[0, 32:].any()


def test_changed_rows_of_several_parts_add_up():
    bank = row_bank()
    one, two = rows(EMBED, 3, 7), rows(EMBED, 7, 9)
    assert bank.put(0, [one, two])
    y = torch.zeros(4, 16)
    bank.apply(-1, Group.EMBED, y, torch.tensor([7, 9, -7, 4]), entries((0, 2.0, 0, 4)))
    torch.testing.assert_close(y[0], 2 * (one.delta[1] + two.delta[0]))
    torch.testing.assert_close(y[1], 2 * two.delta[1])
    assert not y[2:].any()


def test_the_demand_of_sparse_changes_is_what_they_take():
    bank = sparse_bank(dtype=torch.bfloat16)
    part, _ = sparse(Q0, 100)
    assert bank.demand([part, part]) == {Q0: 2 * (25 * 8 + 100 * 6)}


@pytest.mark.parametrize(
    ("make", "parts"),
    [(sparse_bank, lambda: [sparse(Q0)[0], sparse(V0)[0]]), (row_bank, lambda: [rows(HEAD, 1, 2)])],
    ids=["sparse", "rows"],
)
class TestBudget:
    def test_all_or_nothing(self, make, parts):
        size = sum(make().demand(parts()).values())
        bank = make(2 * size - 1)
        assert bank.put(0, parts())
        assert not bank.put(1, parts())
        assert bank.touched[1] == 0
        assert bank.budget.used == size
        bank.clear(0)
        bank.clear(0)
        assert bank.budget.used == 0
        assert bank.put(1, parts())

    def test_what_can_never_fit_is_refused_with_the_flag(self, make, parts):
        demand = make().demand(parts())
        size = sum(demand.values())
        make(size).check_fits([demand])
        with pytest.raises(AdapterUnsupported, match="--adapter-delta-mib 1"):
            make(size - 1).check_fits([demand])
        with pytest.raises(AdapterUnsupported, match="together"):
            make(size).check_fits([demand, demand])

    def test_nothing_remains_after_an_error(self, make, parts, monkeypatch):
        bank = make()

        def fail(*args):
            raise MemoryError

        monkeypatch.setattr(bank, "on_device", fail)
        with pytest.raises(MemoryError):
            bank.put(0, parts())
        assert bank.budget.used == 0
        assert bank.touched[0] == 0

    def test_a_cleared_slot_gives_its_memory_back(self, make, parts):
        bank = make()
        components = parts()
        bank.put(0, components)
        kept = [weakref.ref(t) for c in components for t in c.tensors]
        bank.clear(0)
        del components
        gc.collect()
        assert not any(ref() is not None for ref in kept)


def test_all_banks_give_back_what_they_took_when_another_is_full():
    banks = DeviceBanks(SHAPE, 4, 8, CPU, torch.float32, lambda site: None, max_delta_bytes=300)
    part, change = sparse(Q0, 4)[0], rows(EMBED, *range(20))
    assert not banks.put(0, [part, change])
    assert all(bank.touched[0] == 0 for bank in banks.acting)
    assert banks.put(0, [part])


def test_in_a_step():
    banks = DeviceBanks(SHAPE, 4, 8, CPU, torch.float32, lambda site: None)
    embed, head = rows(EMBED, 3, 7), rows(HEAD, 0, 49)
    banks.put(2, [embed, head])
    plan = StepPlan(banks, [RowUse(0, 2, (2,), (1.0,)), RowUse(2, 2, (2,), (0.5,))], [1, 3])
    hidden = torch.zeros(4, 16)
    plan.embed(hidden, torch.tensor([3, 1, 7, 7]))
    torch.testing.assert_close(hidden[2], 0.5 * embed.delta[1])
    x, logits = torch.randn(2, 16), torch.zeros(2, 50)
    plan.apply_to_logits(Group.HEAD, logits, x)
    expected = torch.tensor([[1.0], [0.5]]) * (x @ head.delta.T)
    torch.testing.assert_close(logits[:, [0, 49]], expected)
    assert not logits[:, 1:49].any()


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_graph_holds_every_site_of_a_step():
    """Recorded with one adapter, replayed with another in its slot."""
    dims = {Module.Q: (32, 16), Module.K: (32, 16), Module.V: (32, 16)}
    dims |= {Module.EMBED: (50, 32), Module.HEAD: (32, 50)}
    shape = ModelShape(1, dims)
    banks = DeviceBanks(shape, 4, 16, CPU, torch.bfloat16, lambda site: None)

    def adapter():
        outputs, inputs = torch.randint(16, (60,)), torch.randint(32, (60,))
        change = SparseDelta.from_entries(Q0, outputs, inputs, torch.randn(60), 16)
        ids = torch.randperm(50)[:5].sort().values
        mixture = LowRank(V0, torch.randn(9, 32), torch.randn(9, 16), num_experts=3)
        parts = change, RowDelta(HEAD, ids, torch.randn(5, 32)), mixture
        return [part.to(torch.bfloat16) for part in parts]

    def run(plan):
        qkv = plan.linear(0, Group.QKV, x, weight, None)
        logits = linear(x, head, out_dtype=torch.float32)
        plan.head(logits, x)
        return qkv, logits

    weight, head = (pack_linear(torch.randn(n, 32).bfloat16()) for n in (48, 50))
    x = torch.randn(3, 32).bfloat16()
    assert banks.put(1, adapter())
    plan = StepPlan(banks, [RowUse(0, 2, (1,), (1.0,))])
    assert plan.signature(3) is not None
    with capture(MemoryPool()) as calls:
        recorded = run(plan)
    banks.clear(1)
    assert banks.put(1, adapter())
    Graph(calls).replay()
    for one, two in zip(recorded, run(plan), strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_steps_of_different_primitives_have_different_graphs():
    """Though they act on the same sites, and each bank has made one table."""
    banks = DeviceBanks(SHAPE, 4, 8, CPU, torch.bfloat16, lambda site: None)
    parts = sparse(Q0)[0], Offset(Q0, torch.ones(24)), Scale(Q0, torch.ones(24))
    for slot, part in enumerate(parts):
        banks.put(slot, [part])
    plans = [StepPlan(banks, [RowUse(0, 1, (slot,), (1.0,))]) for slot in range(len(parts))]
    signatures = {plan.signature(1) for plan in plans}
    assert None not in signatures
    assert len(signatures) == len(parts)


class TestMixtures:
    def test_a_gate_is_neither_read_nor_put_out(self):
        bank = LowRankBank(SHAPE, 4, 32, CPU, torch.float32)
        a, b = torch.randn(6, 16), torch.randn(6, 24)
        b[4:] = float("nan")
        bank.put(0, [LowRank(Q0, a, b, num_experts=2)])
        x, y = torch.randn(1, 16), torch.zeros(1, 24)
        bank.apply(0, Group.QKV, y, x, entries((0, 0.5, 0, 1)))
        hidden = x @ a.T
        gate = hidden[:, 4:].softmax(-1)
        expected = 0.5 * sum(
            gate[:, e, None] * hidden[:, 2 * e : 2 * e + 2] @ b[2 * e : 2 * e + 2] for e in (0, 1)
        )
        torch.testing.assert_close(y, expected)
        bank.clear(0)
        bank.put(0, [LowRank(Q0, a, torch.ones(6, 24))])  # plain again
        y.zero_()
        bank.apply(0, Group.QKV, y, x, entries((0, 1.0, 0, 1)))
        torch.testing.assert_close(y, hidden @ torch.ones(6, 24))

    def test_beside_another_branch_it_is_refused(self):
        bank = LowRankBank(SHAPE, 4, 32, CPU, torch.float32)
        mixture = LowRank(Q0, torch.randn(6, 16), torch.randn(6, 24), num_experts=2)
        plain = LowRank(Q0, torch.randn(2, 16), torch.randn(2, 24))
        with pytest.raises(AdapterUnsupported, match="mixture"):
            bank.demand([mixture, plain])
