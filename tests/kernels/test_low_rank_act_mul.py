import pytest
import torch
from tests.kernels.test_low_rank import BATCHES, entries, expected, make

from turret_kernels.activation import act_mul, act_mul_reference
from turret_kernels.entries import Entries
from turret_kernels.low_rank import RankSlices, low_rank
from turret_kernels.low_rank_act_mul import low_rank_act_mul

# The interpreter speaks of what is meant: exp may overflow.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]

INNER = 160


def pools(adapted, ranks, dtype, experts=0):
    """Of gate, of up, or of both."""
    columns = {"gate": [0], "up": [INNER], "both": [0, INNER]}[adapted]
    slices, factors = make(64, [INNER] * len(columns), ranks, dtype, experts)
    return RankSlices(slices.pools, columns), factors


@pytest.mark.parametrize(
    ("batch", "adapted"),
    [*((batch, "both") for batch in BATCHES), ("decode", "gate"), ("stacked", "up")],
)
def test_it_is_the_product_of_the_adapted_gate_and_up(batch, adapted, dtype, assert_parity):
    """Of every row: those without an adapter are the base's."""
    tokens, rows = BATCHES[batch]
    slices, factors = pools(adapted, [8, 3, 33, 64, 0], dtype)
    x, y = torch.randn(tokens, 64).to(dtype), torch.randn(tokens, 2 * INNER).to(dtype)
    want = act_mul_reference(expected(y, x, slices, factors, rows), "silu")
    found = low_rank_act_mul(y, x, slices, entries(rows), "silu")
    # What is rounded on the way (gate and up, of order ten) shows in the product.
    assert_parity(found, want, steps=4, sums=True)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_bit_for_bit_what_the_two_kernels_compute(activation, dtype):
    """A graph with a scale at `gate` runs them apart: neither may tell."""
    slices, _ = pools("both", [8, 3, 33], dtype)
    x, y = torch.randn(30, 64).to(dtype), torch.randn(30, 2 * INNER).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 0.5, 0, 2), (2, -1.0, 5, 20)]
    apart = y.clone()
    low_rank(apart, x, slices, entries(rows))
    want = act_mul(apart, activation)
    assert torch.equal(low_rank_act_mul(y, x, slices, entries(rows), activation), want)


def test_weights_per_slice(dtype, assert_parity):
    slices, factors = pools("both", [4, 2], dtype)
    x, y = torch.randn(3, 64).to(dtype), torch.randn(3, 2 * INNER).to(dtype)
    rows = [(0, 1.0, 0, 2), (1, 1.0, 2, 1)]
    by_site = torch.tensor([[2.0, 0.5], [0.0, -1.0]])
    want = act_mul_reference(expected(y, x, slices, factors, rows, by_site), "silu")
    found = low_rank_act_mul(y, x, slices, entries(rows), "silu", list(by_site))
    assert_parity(found, want, steps=4, sums=True)


def test_tiles_of_a_larger_step_end_with_the_batch(dtype):
    """A graph's buffers hold steps of any size; this one was recorded for fewer rows."""
    slices, _ = pools("both", [8, 3], dtype)
    x, y = torch.randn(6, 64).to(dtype), torch.randn(6, 2 * INNER).to(dtype)
    device = x.device
    buffers = Entries.buffers(8, 30, 1, device)
    buffers.cover(16, 6)
    buffers.assign(entries([(0, 1.0, 0, 4), (1, 1.0, 7, 20)]))
    buffers.assign(entries([(1, 0.5, 2, 3)]))
    want = low_rank_act_mul(y.clone(), x, slices, entries([(1, 0.5, 2, 3)]), "silu")
    assert torch.equal(low_rank_act_mul(y, x, slices, buffers, "silu"), want)


def test_a_mixture_is_weighed_before(dtype, assert_parity):
    slices, factors = pools("up", [6, 8, 9], dtype, experts=3)
    x, y = torch.randn(9, 64).to(dtype), torch.randn(9, 2 * INNER).to(dtype)
    rows = [(2, 0.5, 1, 4), (0, 1.0, 6, 1)]
    want = act_mul_reference(expected(y, x, slices, factors, rows), "silu")
    found = low_rank_act_mul(y, x, slices, entries(rows), "silu")
    assert_parity(found, want, steps=4, sums=True)
