"""One step: what acts where, and that nothing else is launched."""

import time

import pytest
import torch

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.components import Offset, Scale, Threshold
from turret_adapters.plan import Group, RowUse, StepPlan
from turret_adapters.site_weights import SiteWeights
from turret_adapters.spec import LINEARS, Module, Site
from turret_kernels.linear import pack_linear
from turret_kernels.sparse_mlp import MlpWeights

CPU = torch.device("cpu")
ALL = [str(module) for module in LINEARS]


@pytest.fixture(scope="module")
def programs(lab, shape, tmp_path_factory):
    """Adapters of different ranks and targets, compiled from PEFT folders."""
    configs = [
        {"r": 4, "target_modules": ALL},
        {"r": 3, "target_modules": ["q_proj", "down_proj"], "lora_bias": True},
        {"r": 8, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"r": 2, "target_modules": ["up_proj"], "layers_to_transform": [1]},
    ]
    programs = []
    for i, config in enumerate(configs):
        path = tmp_path_factory.mktemp("plan") / str(i)
        lab.save_lora(path, **config)
        programs.append(lab.compile_folder(path, shape))
    return programs


@pytest.fixture
def banks(programs, shape):
    banks = DeviceBanks(shape, 7, 32, CPU, torch.float32, lambda site: None)
    for slot, program in enumerate(programs):
        assert banks.put(slot, program.components)
    return banks


def weight_of(weight, site):
    if not isinstance(weight, SiteWeights):
        return weight
    value = weight.table.get(str(site.module), 1.0)
    return value[site.layer] if isinstance(value, tuple) else value


def expected(lab, shape, programs, uses, layer, group, y, x, rows=None):
    """Every use at every module by the reference formula."""
    rows = list(range(len(x))) if rows is None else rows
    y, column = y.clone(), 0
    for module in group.modules:
        fan_out = shape.dims[module][1]
        for use in uses:
            at = [i for i, row in enumerate(rows) if 0 <= row - use.row_start < use.row_count]
            for slot, weight in zip(use.slots, use.weights, strict=True):
                for component in programs[slot].components:
                    if component.site == Site(layer, module):
                        delta = lab.reference_delta(component, x[at], None)
                        y[at, column : column + fan_out] += (
                            weight_of(weight, component.site) * delta
                        )
        column += fan_out
    return y


MIXED = [
    RowUse(0, 3, (0,), (1.0,)),
    RowUse(3, 1, (1,), (0.5,)),
    # rows 4 and 5 are the base's
    RowUse(6, 4, (2, 0), (1.0, -1.0)),
    RowUse(10, 1, (3,), (2.0,)),
    RowUse(11, 2, (1, 3), (0.0, 1.0)),
]
PER_SITE = [
    RowUse(0, 3, (0,), (SiteWeights({"q_proj": 0.25, "up_proj": (-1.0, 0.5)}, 2),)),
    RowUse(3, 5, (1, 0), (0.5, SiteWeights({"down_proj": 0.0, "k_proj": (2.0, 0.0)}, 2))),
    RowUse(8, 3, (2,), (SiteWeights({"embed_tokens": 0.5, "lm_head": 3.0}, 2),)),
]


@pytest.mark.parametrize("uses", [MIXED, PER_SITE, []], ids=["mixed", "per site", "none"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("group", [Group.QKV, Group.O, Group.GATE_UP, Group.DOWN])
def test_linears(lab, shape, programs, banks, uses, layer, group):
    plan = StepPlan(banks, uses)
    x = torch.randn(13, shape.dims[group.modules[0]][0])
    y = torch.randn(13, sum(shape.dims[module][1] for module in group.modules))
    want = expected(lab, shape, programs, uses, layer, group, y, x)
    plan.apply(layer, group, y, x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("uses", "fuses"),
    [
        (MIXED, True),
        (PER_SITE, True),
        ([RowUse(2, 3, (0,), (1.0,)), RowUse(5, 1, (4,), (1.0,))], True),  # a scale comes before
        ([RowUse(2, 3, (0,), (1.0,)), RowUse(5, 1, (5,), (1.0,))], False),  # an offset behind
        ([RowUse(2, 3, (0, 6), (1.0, 1.0))], False),  # a threshold
        ([RowUse(2, 3, (5,), (1.0,))], False),
    ],
    ids=["mixed", "per site", "scaled", "offset", "thresholded", "without branches"],
)
def test_branches_of_gate_and_up_end_in_their_product_where_nothing_follows(
    shape, banks, uses, fuses, monkeypatch
):
    gate = Site(0, Module.GATE)
    inner = shape.dims[Module.GATE][1]
    scale = Scale(gate, torch.rand(inner), before_deltas=True)
    others = [scale], [Offset(gate, torch.randn(inner))], [Threshold(Site(0, Module.ACT), 0.3)]
    for slot, components in enumerate(others, start=4):
        assert banks.put(slot, components)
    calls, fused = [], banks.low_rank.gated
    monkeypatch.setattr(banks.low_rank, "gated", lambda *args: calls.append(1) or fused(*args))
    gate_up = pack_linear(torch.randn(2 * inner, shape.dims[Module.GATE][0]))
    weights = MlpWeights(gate_up, None, pack_linear(torch.randn(8, inner)), None, "silu")
    plan, x = StepPlan(banks, uses), torch.randn(13, gate_up.in_features)
    want = plan.gate(0, plan.linear(0, Group.GATE_UP, x, gate_up, None), "silu")
    assert not calls
    torch.testing.assert_close(plan.gated(0, x, weights), want)
    assert bool(calls) is fuses


@pytest.mark.parametrize("uses", [MIXED, PER_SITE], ids=["mixed", "per site"])
def test_embedding(lab, shape, programs, banks, uses):
    ids, y = torch.randint(lab.vocab, (13,)), torch.randn(13, lab.hidden)
    want = expected(lab, shape, programs, uses, -1, Group.EMBED, y, ids)
    StepPlan(banks, uses).embed(y, ids)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("uses", [MIXED, PER_SITE], ids=["mixed", "per site"])
@pytest.mark.parametrize("rows", [None, [2, 3, 5, 7, 9, 10], [4, 5], [6], []], ids=str)
def test_head_acts_on_the_gathered_rows(lab, shape, programs, banks, uses, rows):
    count = 13 if rows is None else len(rows)
    x, y = torch.randn(count, lab.hidden), torch.randn(count, lab.vocab)
    want = expected(lab, shape, programs, uses, -1, Group.HEAD, y, x, rows)
    logit_rows = None if rows is None else torch.tensor(rows, dtype=torch.int64)
    StepPlan(banks, uses, logit_rows).apply_to_logits(Group.HEAD, y, x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


class Spy:
    """A bank that counts its launches."""

    def __init__(self, touched):
        self.touched, self.launches = touched, []

    def apply(self, layer, group, y, x, entries):
        self.launches.append((layer, group))


def test_sites_that_no_active_adapter_touches_launch_nothing(banks):
    spy = Spy(banks.low_rank.touched)
    banks.acting = (spy,)
    plan = StepPlan(banks, [RowUse(0, 1, (3,), (1.0,))], [0])  # up_proj of layer 1
    x = torch.zeros(1, 1)
    plan.embed(x, x)
    for layer in range(3):
        for group in (Group.QKV, Group.O, Group.GATE_UP, Group.DOWN):
            plan.apply(layer, group, x, x)
    plan.apply_to_logits(Group.HEAD, x, x)
    assert spy.launches == [(1, Group.GATE_UP)]


@pytest.mark.parametrize(
    "uses", [[], [RowUse(0, 4, (0,), (0.0,))], [RowUse(0, 4, (5,), (1.0,))], [RowUse(0, 4, (), ())]]
)
def test_a_plan_without_effect_is_false(banks, uses):
    assert not StepPlan(banks, uses)


def test_a_plan_with_effect_is_true(banks):
    assert StepPlan(banks, MIXED)


def test_an_idle_site_costs_under_ten_microseconds(banks):
    """A generous bound on a shared machine: it takes a third of one."""
    plan = StepPlan(banks, [RowUse(0, 1, (3,), (1.0,))])
    x = torch.zeros(1, 1)
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            plan.apply(0, Group.O, x, x)
        rounds.append(time.perf_counter() - began)
    assert min(rounds) / 1000 < 10e-6


def test_the_program_of_a_stack_is_the_sum(banks, programs):
    """Sums commute: the order in a recipe does not matter."""
    x, one, two = torch.randn(4, 32), torch.zeros(4, 64), torch.zeros(4, 64)
    StepPlan(banks, [RowUse(0, 4, (0, 1), (1.0, 0.5))]).apply(0, Group.QKV, one, x)
    StepPlan(banks, [RowUse(0, 4, (1, 0), (0.5, 1.0))]).apply(0, Group.QKV, two, x)
    torch.testing.assert_close(one, two)
