"""A recorded decode step computes what the decoder would, whatever acts on which rows by then."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.components import LowRank, Offset, Scale, Threshold
from turret_adapters.plan import BASE, RowUse, StepPlan
from turret_adapters.spec import Module, Site
from turret_kernels import gpu, native
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.engine.runner import Runner
from turret_server.models.batch import Batch
from turret_server.models.decoder import Decoder

# The interpreter would take what of a bf16 step is float32.
pytestmark = pytest.mark.skipif(
    native.lib is None or gpu.INTERPRETED, reason="graphs record native kernels"
)

ROWS, BLOCK = 6, 32
CPU, BF16 = torch.device("cpu"), torch.bfloat16


def load(folder, **sizes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        **sizes,
    }
    config = LlamaConfig(**sizes)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    return Decoder.load(folder, BF16, CPU, 64)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load(tmp_path_factory.mktemp("model"))


def adapters(decoder, seed):
    """Four adapters that bring every primitive to every kind of place."""
    torch.manual_seed(seed)
    shape = decoder.shape

    def vector(site):
        return torch.randn(shape.width(site.module)) / 4

    def at(*modules):
        alone = (Module.HEAD, Module.HEAD_IN)
        return [Site(x, m) for m in modules for x in ((-1,) if m in alone else (0, 1))]

    scaled = at(Module.K, Module.INNER, Module.ATTENTION_IN, Module.MLP_IN, Module.HEAD_IN)
    moved = at(Module.V, Module.O, Module.HEADS, Module.DOWN, Module.HEAD)
    turned, cut = at(Module.Q, Module.UP), at(Module.ACT, Module.DOWN, Module.Q, Module.V)
    branches = at(Module.Q, Module.DOWN, Module.HEAD)
    return [
        [Scale(site, 1 + vector(site)) for site in scaled],
        [Offset(site, vector(site)) for site in moved],
        [
            *(Scale(site, 1 + vector(site), vector(site), 8) for site in turned),
            *(Threshold(site, 0.2 + torch.rand(()).item() / 4) for site in cut),
        ],
        [
            LowRank(site, torch.randn(4, shape.dims[site.module][0]).to(BF16) / 4, b)
            for site in branches
            for b in [torch.randn(4, shape.dims[site.module][1]).to(BF16) / 4]
        ],
    ]


class Steps:
    """Decode steps over buffers that stay where they are."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.banks = DeviceBanks(decoder.shape, 4, 16, CPU, BF16, decoder.bias)
        self.put(1)
        self._kv = decoder.allocate_kv(ROWS, BLOCK)
        for cache in self._kv:
            cache.k.normal_()
            cache.v.normal_()
        self.runner = Runner(decoder, self._kv, ROWS)
        self._tokens, self._positions = torch.zeros(2, ROWS, dtype=torch.int64)
        self._slots = torch.zeros(ROWS, dtype=torch.int64)
        self._context = torch.zeros(ROWS, dtype=torch.int32)
        self._query_start = torch.arange(ROWS + 1, dtype=torch.int32)
        self._block_table = torch.arange(ROWS, dtype=torch.int32)[:, None]

    def put(self, seed):
        """Other adapters into the slots."""
        for slot, components in enumerate(adapters(self._decoder, seed)):
            self.banks.clear(slot)
            assert self.banks.put(slot, components)

    def run(self, rows, uses, seed=None):
        """The logits of a step: recorded or replayed, and as the decoder computes them."""
        if seed is not None:
            torch.manual_seed(seed)
        self._tokens.random_(128)
        self._positions.random_(BLOCK)
        self._slots[:] = torch.arange(ROWS) * BLOCK + self._positions
        self._context[:] = self._positions + 1

        def batch():
            return Batch(
                token_ids=self._tokens[:rows],
                positions=self._positions[:rows],
                slots=self._slots[:rows],
                attention=AttentionMetadata(
                    query_start=self._query_start[: rows + 1],
                    context_len=self._context[:rows],
                    block_table=self._block_table[:rows],
                ),
                logit_rows=None,
                adapters=StepPlan(self.banks, uses) or BASE,
            )

        # The step writes keys and values; the same tokens write the same again.
        want = self._decoder.forward(batch(), self._kv)
        return self.runner.forward(batch()), want


@pytest.fixture
def steps(decoder):
    return Steps(decoder)


def use(start, count, *slots, weight=1.0):
    return RowUse(start, count, slots, (weight,) * len(slots))


MIXED = [
    [use(0, 2, 0), use(2, 1, 1), use(3, 1, 2), use(4, 2, 3)],
    [use(0, 1, 3, weight=0.5), use(1, 3, 2), use(4, 1, 0, weight=-1.0), use(5, 1, 1)],
    [use(0, 1, 0, 1), use(2, 2, 2, 3), use(5, 1, 1, weight=2.0)],
]


@pytest.mark.parametrize("slot", range(4), ids=["scales", "offsets", "thresholds", "low rank"])
def test_one_primitive(steps, slot):
    for start, count in ((0, 3), (2, 2), (5, 1)):
        found, want = steps.run(ROWS, [use(start, count, slot)])
        assert torch.equal(found, want)
    assert len(steps.runner._graphs) == 1


def test_mixed_batches_share_a_graph(steps):
    for uses in MIXED * 2:
        found, want = steps.run(ROWS, uses)
        assert torch.equal(found, want)
    assert len(steps.runner._graphs) == 1


def test_other_adapters_in_the_slots(steps):
    """The tables stay where they are, so the graph stays valid and reads what is in them now."""
    steps.run(ROWS, MIXED[0])
    steps.put(2)
    found, want = steps.run(ROWS, MIXED[1])
    assert torch.equal(found, want)
    assert len(steps.runner._graphs) == 1


def test_a_new_table_makes_graphs_stale(steps):
    steps.run(ROWS, [use(0, 3, 1)])
    steps.banks.clear(1)
    site = Site(0, Module.GATE)
    assert steps.banks.put(1, [Offset(site, torch.randn(96))])
    found, want = steps.run(ROWS, [use(0, 3, 1)])
    assert torch.equal(found, want)


def test_a_row_does_not_depend_on_its_batch(steps):
    """The first row, alone and beside others that do something else."""
    alone = steps.run(1, [use(0, 1, 0)], seed=5)[0].clone()
    for uses in ([use(0, 1, 0), use(1, 2, 1)], [use(0, 1, 0), use(3, 2, 2, 3)]):
        found, want = steps.run(ROWS, uses, seed=5)
        assert torch.equal(found, want)
        assert torch.equal(found[0], alone[0])


@pytest.mark.parametrize(
    "sizes",
    [{"head_dim": 16}, {"intermediate_size": 90}, {"hidden_size": 72, "head_dim": 32}],
    ids=["attention", "mlp", "everything"],
)
def test_models_that_need_torch_are_not_recorded(tmp_path, sizes):
    steps = Steps(load(tmp_path, **sizes))
    found, want = steps.run(ROWS, [use(0, 3, 0)])
    assert torch.equal(found, want)
    assert not steps.runner._graphs


def test_branches_that_need_torch_are_not_recorded(tmp_path):
    """The native branch writes 16 columns at a time, and logits may be any number."""
    steps = Steps(load(tmp_path, vocab_size=131))
    for uses in ([use(0, 3, 3)], [use(0, 3, 0), use(3, 1, 2)], []):
        found, want = steps.run(ROWS, uses)
        assert torch.equal(found, want)
    assert len(steps.runner._graphs) == 2
