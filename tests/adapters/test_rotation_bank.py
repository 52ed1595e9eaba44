"""Rotated inputs on the device: one product per linear, each of its own input."""

import pytest
import torch

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.banks.rotation import RotationBank
from turret_adapters.components import InputRotation, LowRank, Threshold
from turret_adapters.errors import AdapterUnsupported
from turret_adapters.groups import Group
from turret_adapters.plan import RowUse, StepPlan
from turret_adapters.site_weights import SiteWeights
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import gpu
from turret_kernels.linear import pack_linear
from turret_kernels.rotation import BlockTable

CPU = torch.device("cpu")
SHAPE = ModelShape(1, {Module.Q: (16, 24), Module.K: (16, 8), Module.V: (16, 8)})
Q, V = Site(0, Module.Q), Site(0, Module.V)


def rotation(site, size=4):
    return InputRotation(site, torch.randn(16 // size, size, size))


def make_banks(max_delta_bytes=1 << 20):
    return DeviceBanks(SHAPE, 4, 8, CPU, torch.float32, lambda site: None, max_delta_bytes)


def test_the_change_is_added_at_its_own_linear():
    banks = make_banks()
    q, v, other = rotation(Q), rotation(V, 8), rotation(Q, 2)
    branch = LowRank(V, torch.randn(2, 16), torch.randn(2, 8))
    for slot, parts in enumerate(([q, v], [other], [branch])):
        assert banks.put(slot, parts)
    weight, bias, x = torch.randn(40, 16), torch.randn(40), torch.randn(5, 16)
    tables = SiteWeights({"q_proj": 0.5, "v_proj": -1.0}, 1)
    plan = StepPlan(
        banks, [RowUse(0, 1, (0,), (1.0,)), RowUse(2, 2, (0, 1, 2), (tables, 2.0, 1.0))]
    )
    found = plan.linear(0, Group.QKV, x, pack_linear(weight), bias)
    want = x @ weight.T + bias

    def add(rows, part, scale):
        first, last = (0, 24) if part.site is Q else (32, 40)
        change = x[rows] @ torch.block_diag(*part.blocks)
        want[rows, first:last] += scale * change @ weight[first:last].T

    add(slice(0, 1), q, 1.0)
    add(slice(0, 1), v, 1.0)
    add(slice(2, 4), q, 0.5)
    add(slice(2, 4), v, -1.0)
    add(slice(2, 4), other, 2.0)
    want[2:4, 32:] += x[2:4] @ branch.a.T @ branch.b  # a branch reads the input as it is
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-5)


def test_memory_is_given_back():
    part = rotation(Q)
    bank = RotationBank(SHAPE, 4, part.num_bytes, CPU, torch.float32)
    assert bank.put(0, [part])
    assert not bank.put(1, [rotation(V)])
    assert bank.touched[1] == 0
    bank.clear(0)
    bank.clear(0)
    assert bank.budget.used == 0
    assert bank.put(1, [rotation(V)])


def test_graphs_on_a_gpu_hold_it(monkeypatch):
    """Its widths do not matter there, and its tables lie beside its blocks."""
    monkeypatch.setattr(gpu, "serves", lambda device: device.type == "meta")
    odd = ModelShape(1, {Module.Q: (20, 30)})
    for device, capturable in (("meta", True), ("cpu", False)):
        bank = RotationBank(odd, 4, 1 << 20, torch.device(device), torch.bfloat16)
        assert bank.capturable is capturable
    assert BlockTable(4, torch.device("meta")).pointers.device.type == "meta"


def test_what_can_never_fit_is_refused():
    banks = make_banks(100)
    with pytest.raises(AdapterUnsupported, match="input rotations take 1 MiB"):
        banks.check_fits([banks.demand([rotation(Q)])])


def test_one_input_is_not_rotated_and_thresholded():
    banks = make_banks()
    turned, cut, elsewhere = (
        banks.demand([part]) for part in (rotation(Q), Threshold(Q, 0.5), Threshold(V, 0.5))
    )
    banks.check_fits([turned, elsewhere])
    with pytest.raises(AdapterUnsupported, match=r"layers\.0\.q_proj"):
        banks.check_fits([turned, cut])
