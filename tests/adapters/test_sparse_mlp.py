"""Where dead neurons are skipped: every row has a threshold behind the gate, and nothing else."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.sharded import ShardedBanks
from turret_adapters.components import Component, LowRank, Offset, Scale, Threshold
from turret_adapters.plan import BASE, RowUse, StepPlan
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import native
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.linear import pack_linear
from turret_kernels.sparse_mlp import MlpWeights

pytestmark = pytest.mark.skipif(native.lib is None, reason="no CPU kernels here")
HIDDEN, INNER, LAYERS = 64, 544, 2
COPY_BYTES = 2 * INNER * HIDDEN * 2  # of a layer: up and down, bf16
GATE_UP = Module.GATE, Module.UP
CPU = torch.device("cpu")


class Model:
    """The MLPs of two layers, and banks over them."""

    def __init__(self, max_neuron_bytes: int = 1 << 30):
        torch.manual_seed(0)
        sizes = {Module.GATE: (INNER, HIDDEN), Module.UP: (INNER, HIDDEN)}
        sizes[Module.DOWN] = (HIDDEN, INNER)
        self.weights = {
            Site(layer, module): (torch.randn(size) / size[1] ** 0.5).bfloat16()
            for layer in range(LAYERS)
            for module, size in sizes.items()
        }
        shape = ModelShape(
            LAYERS, {m: (n, k) for m, (k, n) in sizes.items()}, weight=self.weights.__getitem__
        )
        self.banks = DeviceBanks(
            shape,
            4,
            16,
            CPU,
            torch.bfloat16,
            lambda site: None,
            max_neuron_bytes=max_neuron_bytes,
        )
        gates = [torch.cat([self.weights[Site(i, m)] for m in GATE_UP]) for i in range(LAYERS)]
        downs = [self.weights[Site(i, Module.DOWN)] for i in range(LAYERS)]
        self.layers = [
            MlpWeights(pack_linear(gate), None, pack_linear(down), None, "silu")
            for gate, down in zip(gates, downs, strict=True)
        ]
        self.neurons = self.banks.threshold._neurons
        self.calls = 0

    def put(self, slot: int, *components: Component) -> None:
        assert self.banks.put(slot, components)

    def run(self, x: torch.Tensor, *uses: RowUse, layer: int = 0) -> tuple[torch.Tensor, bool]:
        """The MLP of a layer, and whether it skipped neurons."""
        plan = StepPlan(self.banks, uses)
        before = self.calls
        y = plan.mlp(layer, x.clone(), self.layers[layer])
        return y, self.calls > before


@pytest.fixture
def model(monkeypatch):
    model = Model()
    original = type(model.banks.threshold).mlp

    def counted(*args):
        model.calls += 1
        return original(*args)

    monkeypatch.setattr(type(model.banks.threshold), "mlp", counted)
    return model


def cats(layer: int = 0, value: float = 0.3) -> Threshold:
    return Threshold(Site(layer, Module.ACT), value)


def rows(start: int, count: int, *slots: int, weight: float = 1.0) -> RowUse:
    return RowUse(start, count, slots, (weight,) * len(slots))


def x_of(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN).bfloat16()


def test_few_rows_with_a_threshold_each(model):
    model.put(0, cats(), cats(1, 0.1))
    model.put(1, cats(0, 0.1))
    x = x_of(3)
    y, skipped = model.run(x, rows(0, 1, 0), rows(1, 2, 1))
    assert skipped
    assert not torch.equal(y, BASE.mlp(0, x, model.layers[0]))
    # In another layer only one of the two has a threshold.
    assert not model.run(x, rows(0, 1, 0), rows(1, 2, 1), layer=1)[1]
    assert model.run(x, rows(0, 3, 0), layer=1)[1]


def test_not_with_other_rows_or_many(model):
    model.put(0, cats())
    assert not model.run(x_of(2), rows(0, 1, 0))[1]  # one of the base's
    assert not model.run(x_of(2), rows(0, 1, 0), rows(1, 1, 0, weight=0.0))[1]
    assert not model.run(x_of(5), rows(0, 5, 0))[1]
    assert model.run(x_of(4), rows(0, 4, 0))[1]


@pytest.mark.parametrize("module", [Module.GATE, Module.UP, Module.INNER])
def test_not_where_something_else_acts_inside(model, module):
    model.put(0, cats(), Offset(Site(0, module), torch.ones(INNER)))
    model.put(1, cats())
    assert not model.run(x_of(2), rows(0, 1, 0), rows(1, 1, 1))[1]
    assert model.run(x_of(2), rows(0, 2, 1))[1]


def test_not_with_thresholds_before_the_linears(model):
    model.put(0, cats(), Threshold(Site(0, Module.DOWN), 0.1))
    assert not model.run(x_of(1), rows(0, 1, 0))[1]


def test_what_acts_before_and_behind_is_applied(model, monkeypatch):
    """Against the same adapters without the copies: everything is computed, then masked."""
    site = Site(0, Module.DOWN)
    model.put(
        0,
        cats(),
        Scale(Site(0, Module.MLP_IN), torch.rand(HIDDEN) + 0.5),
        LowRank(site, torch.randn(2, INNER).bfloat16(), torch.randn(2, HIDDEN).bfloat16()),
        Scale(site, torch.rand(HIDDEN) + 0.5),
        Offset(site, torch.randn(HIDDEN)),
    )
    x = x_of(2)
    y, skipped = model.run(x, rows(0, 2, 0))
    monkeypatch.setattr(type(model.neurons), "at", lambda self, layer: None)
    wanted, masked = model.run(x, rows(0, 2, 0))
    assert skipped
    assert not masked
    # Sums in another order, in bf16: two roundings of values of about 30.
    torch.testing.assert_close(y, wanted, rtol=2**-6, atol=2**-4)


def test_copies_live_as_long_as_somebody_needs_them(model):
    size = COPY_BYTES
    assert model.neurons.num_bytes == 0
    model.put(0, cats(0), cats(1))
    model.put(1, cats(0))
    layout = model.banks.threshold.neurons_layout
    model.put(2, Threshold(Site(0, Module.UP), 0.1))  # TEAL needs none
    assert model.neurons.num_bytes == 2 * size
    model.banks.clear(0)
    model.banks.clear(0)
    assert model.neurons.num_bytes == size
    assert model.run(x_of(1), rows(0, 1, 1))[1]
    model.banks.clear(1)
    assert model.neurons.num_bytes == 0
    # Graphs that read the old copy must not be replayed on the new one.
    model.put(1, cats(0))
    assert model.banks.threshold.neurons_layout > layout


@pytest.mark.parametrize(("room", "copies"), [(0, 0), (2 * COPY_BYTES - 1, 1), (2 * COPY_BYTES, 2)])
def test_layers_beyond_the_memory_limit_are_masked(room, copies, caplog):
    limited = Model(max_neuron_bytes=room)
    limited.put(0, cats(0), cats(1))
    assert limited.neurons.num_bytes == copies * COPY_BYTES
    assert [limited.banks.threshold.has_sparse_mlp(i) for i in (0, 1)] == [copies > 0, copies > 1]
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == (copies < 2)
    assert all(f"skipped in {copies} of 2 layers" in text for text in warned)
    x = x_of(2)
    free = Model()
    free.put(0, cats(0), cats(1))
    for layer in range(LAYERS):
        wanted = free.run(x, rows(0, 2, 0), layer=layer)[0]
        # The same neurons; sums in another order, in bf16: two roundings of values of about 1.
        got = limited.run(x, rows(0, 2, 0), layer=layer)[0]
        torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6)


def test_a_copy_that_fails_leaves_no_trace(model, monkeypatch):
    model.put(0, cats(0))

    def fail(up, down):
        raise MemoryError

    monkeypatch.setattr("turret_adapters.banks.neurons.pack_neurons", fail)
    with pytest.raises(MemoryError):
        model.put(1, cats(0), cats(1))
    assert model.run(x_of(1), rows(0, 1, 0))[1]
    model.banks.clear(0)
    assert model.neurons.num_bytes == 0


def test_graphs_of_both_paths_are_told_apart(model):
    model.put(0, cats())
    model.put(1, cats(), Offset(Site(1, Module.UP), torch.ones(INNER)))
    uses = [
        [rows(0, 2, 0)],
        [rows(0, 1, 0)],  # beside a row of the base
        [rows(0, 1, 0), rows(1, 1, 1)],
    ]
    plans = [StepPlan(model.banks, use) for use in uses]
    assert len({plan.signature(2) for plan in plans}) == 3
    # Where no step skips neurons, it does not matter which rows run what.
    assert len({plan.signature(6) for plan in plans[:2]}) == 1
    switched_off = StepPlan(model.banks, [rows(0, 1, 0), rows(1, 1, 0, weight=0.0)])
    assert switched_off.signature(2) == plans[1].signature(2)


def test_a_graph_holds_it(model):
    model.put(0, cats())
    x = x_of(2)
    plan = StepPlan(model.banks, [rows(0, 2, 0)])
    with capture(MemoryPool()) as calls:
        y = plan.mlp(0, x, model.layers[0])
    assert len(calls) == 1
    x.copy_(x_of(2))
    Graph(calls).replay()
    assert torch.equal(y, model.run(x, rows(0, 2, 0))[0])


def test_the_bound_holds_where_processes_are_several():
    shape, peers = Model().banks.shape, Mock()
    bounds = 0, COPY_BYTES  # of deltas, and of second copies
    banks = ShardedBanks(
        shape, 4, 16, CPU, torch.bfloat16, lambda site: None, *bounds, whole=shape, peers=peers
    )
    assert banks.threshold.put(0, [cats(), cats(1)])
    assert [banks.threshold.has_sparse_mlp(layer) for layer in range(LAYERS)] == [True, False]
