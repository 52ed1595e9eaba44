from functools import partial

import pytest
import torch
from tests.kernels import conftest

from turret_kernels import gpu, native, threshold
from turret_kernels.activation import ACTIVATIONS, act_mul
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.testing import exact
from turret_kernels.threshold import act_threshold_mul

# By slot; -1: none. 0 keeps all but zeros. Not representable in bf16: 0.3, 0.7.
BOUNDS = torch.tensor(
    [0.3, 0.7, 0.0, -1.0, float("inf")], device="cuda" if conftest.ON_GPU else "cpu"
)
BATCHES = {
    "decode": (9, [(0, 0, 1), (1, 1, 1), (2, 2, 3), (4, 7, 1)]),
    "prefill": (40, [(0, 0, 7), (1, 7, 23), (2, 32, 8)]),
    "none": (6, [(3, 0, 6)]),
    "stacked with none": (6, [(0, 0, 4), (3, 0, 4)]),  # an adapter without thresholds beside
}


@pytest.fixture(params=dict.fromkeys([*conftest.DTYPES, torch.float32]), ids=str)
def dtype(request):
    """float32 on every path."""
    return request.param


def entries(rows):
    slot, start, count = zip(*rows, strict=True)
    host = [torch.tensor(v, dtype=torch.int32, device="cpu") for v in (start, count)]
    return Entries(torch.tensor(slot, dtype=torch.int32), torch.ones(len(rows)), *host)


def bounds_of(tokens, rows):
    """The threshold of every row, None where there is none."""
    bounds = [None] * tokens
    for slot, start, count in rows:
        if BOUNDS[slot] >= 0:
            bounds[start : start + count] = [float(BOUNDS[slot])] * count
    return bounds


@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [16, 50, 1040])
def test_threshold(batch, width, dtype, assert_parity):
    tokens, rows = BATCHES[batch]
    x = torch.randn(tokens, width).to(dtype)
    x[:, 0] = 0.3  # equal is not more, where the dtype holds the threshold
    want = x.clone()
    for row, bound in enumerate(bounds_of(tokens, rows)):
        for i, value in enumerate(x[row].tolist()):
            if bound is not None and not abs(value) > torch.tensor(bound).item():
                want[row, i] = 0
    found = threshold.threshold(x, BOUNDS, entries(rows))
    assert torch.equal(found, want)
    assert_parity(found, exact(want))


@pytest.mark.triton
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [16, 50, 1040])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_act_threshold_mul(batch, width, dtype, activation, assert_parity):
    """The activation is rounded to the dtype, compared, and multiplied."""
    tokens, rows = BATCHES[batch]
    gate, up = (torch.randn(2, tokens, width) * 2).to(dtype)
    found = act_threshold_mul(torch.cat([gate, up], dim=1), BOUNDS, entries(rows), activation)
    # In float64 first: in bf16 torch itself loses GELU's tail, where its 1 + tanh cancels.
    act = ACTIVATIONS[activation](gate.double()).to(exact(gate).dtype)
    bound = torch.tensor([-1.0 if b is None else b for b in bounds_of(tokens, rows)])[:, None]
    want = torch.where(act.abs() <= bound, 0, act) * exact(up)
    # On which side of the threshold a neighbour of it lies depends on the rounding.
    is_sure = (act.abs() - bound).abs() > 2 * torch.finfo(dtype).eps * act.abs()
    is_sure |= bound.isinf()
    assert is_sure.float().mean() > 0.9
    assert_parity(found[is_sure], want[is_sure], steps=2)


@pytest.mark.triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_a_threshold_it_is_act_mul(dtype, activation):
    gate_up = torch.randn(20, 200).to(dtype)
    found = act_threshold_mul(gate_up, BOUNDS, entries([(3, 0, 20)]), activation)
    if threshold.lib is None and not gpu.takes(gate_up):
        # The torch path rounds the activation as torch does.
        torch.testing.assert_close(found, act_mul(gate_up, activation), rtol=2**-6, atol=1e-6)
    else:
        assert torch.equal(found, act_mul(gate_up, activation))


@pytest.mark.triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_stays_visible(dtype, activation):
    """With and without a threshold: a damaged row must not look like a sparse one."""
    x = torch.randn(4, 32).to(dtype)
    x[:, 5] = float("nan")
    assert threshold.threshold(x, BOUNDS, entries([(0, 0, 2)]))[:, 5].isnan().all()
    assert act_threshold_mul(x, BOUNDS, entries([(0, 0, 2)]), activation)[:, 5].isnan().all()


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_batch(dtype):
    x = torch.randn(40, 640).to(dtype)
    for act in (threshold.threshold, partial(act_threshold_mul, activation="gelu_tanh")):
        whole = act(x, BOUNDS, entries([(0, 0, 15), (1, 20, 20)]))
        for row, rows in ((7, [(0, 0, 1)]), (38, [(1, 0, 1)]), (17, [(3, 0, 1)])):
            assert torch.equal(act(x[row : row + 1], BOUNDS, entries(rows))[0], whole[row])


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_replay_reads_the_entries_of_its_time():
    static = entries([(0, 0, 3), (1, 3, 2), (0, 0, 1)])
    static.count[0] = 2
    x, bounds = torch.randn(8, 96).bfloat16(), BOUNDS.clone()

    def act(x, bounds, entries):
        return act_threshold_mul(threshold.threshold(x, bounds, entries), bounds, entries, "silu")

    with capture(MemoryPool()) as calls:
        out = act(x, bounds, static)
    graph = Graph(calls)
    for rows in ([(2, 1, 4)], [(0, 0, 4), (1, 4, 2), (2, 6, 1)], []):
        for name, value in zip(
            ("slot", "row_start", "row_count"), zip(*rows, strict=True), strict=False
        ):
            getattr(static, name)[: len(rows)] = torch.tensor(value)
        static.count[0] = len(rows)
        x.copy_(torch.randn(8, 96))
        bounds[0] += 0.1  # another adapter in the slot
        graph.replay()
        assert torch.equal(out, act(x, bounds, entries(rows or [(3, 0, 1)])))
