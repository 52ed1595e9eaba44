from dataclasses import fields, replace

import pytest
import torch
from tests.kernels import conftest

from turret_kernels import gpu, native
from turret_kernels.activation import ACTIVATIONS
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.linear import LinearWeight, pack_linear
from turret_kernels.sparse_mlp import MlpWeights, pack_neurons, sparse_mlp, sparse_mlp_reference
from turret_kernels.testing import exact

needs_kernel = pytest.mark.skipif(
    native.lib is None and not (gpu.INTERPRETED or conftest.ON_GPU), reason="no kernels here"
)
NEVER_DENSE = 2.0


def mlp(hidden, inner, dtype, bias=False, activation="silu"):
    """Weights, and the same neuron by neuron."""
    gate, up = (torch.randn(2, inner, hidden) * 64 / hidden**0.5).round().to(dtype) / 64
    down = (torch.randn(hidden, inner) / inner**0.5).to(dtype)
    biases = (torch.randn(2 * inner) / 4).to(dtype), torch.randn(hidden).to(dtype)
    gate_bias, down_bias = biases if bias else (None, None)
    gate_up = pack_linear(torch.cat([gate, up]))
    weights = MlpWeights(gate_up, gate_bias, pack_linear(down), down_bias, activation)
    return weights, pack_neurons(up, down)


def exact_weights(weights):
    """As `exact`: float32 becomes float64."""

    def widened(x):
        if isinstance(x, LinearWeight):
            return replace(x, data=exact(x.data))
        return exact(x) if isinstance(x, torch.Tensor) else x

    return MlpWeights(*(widened(getattr(weights, field.name)) for field in fields(weights)))


def one_each(*slots):
    """Entries: every row has a slot of its own."""
    return Entries(
        slot=torch.tensor(slots, dtype=torch.int32),
        weight=torch.ones(len(slots)),
        row_start=torch.arange(len(slots), dtype=torch.int32, device="cpu"),
        row_count=torch.ones(len(slots), dtype=torch.int32, device="cpu"),
    )


def assert_close(found, wanted):
    # Sums in another order: a rounding apart, here of `up` and of the result.
    step = max(torch.finfo(found.dtype).eps, 2**-20)
    torch.testing.assert_close(found, wanted, rtol=step, atol=step)


def check_against_the_reference(
    assert_parity, rows, hidden, inner, bias, activation, dtype, dense_above=NEVER_DENSE
):
    weights, neurons = mlp(hidden, inner, dtype, bias, activation)
    x = torch.randn(rows, hidden).to(dtype)
    thresholds, entries = torch.tensor([0.1, 0.0, 0.4, 50.0]), one_each(*range(rows))
    wanted, wanted_product = sparse_mlp_reference(
        exact(x), exact_weights(weights), thresholds, entries
    )
    y, product = sparse_mlp(x, weights, neurons, thresholds, entries, dense_above)
    # A rounding apart in `up` and in the result.
    assert_parity(y, wanted, steps=2, sums=True)
    assert_parity(product, wanted_product, steps=2, sums=True)
    # The same live neurons, exactly: the gate is computed by the same kernel.
    assert torch.equal(product == 0, wanted_product == 0)


@needs_kernel
@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("hidden", "inner", "bias", "activation"),
    [(64, 96, False, "silu"), (160, 224, True, "gelu_tanh")],
)
def test_it_is_the_dense_mlp_with_a_mask(
    rows, hidden, inner, bias, activation, dtype, assert_parity
):
    check_against_the_reference(assert_parity, rows, hidden, inner, bias, activation, dtype)


@pytest.mark.skipif(native.lib is None, reason="a GPU never reads all of them in order")
@pytest.mark.parametrize(("bias", "activation"), [(False, "silu"), (True, "gelu_tanh")])
@pytest.mark.parametrize("dense_above", [NEVER_DENSE, -1.0], ids=["sparse", "dense"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("hidden", "inner"), [(96, 256), (160, 800)])
def test_dense_or_not(rows, hidden, inner, bias, activation, dtype, dense_above, assert_parity):
    check_against_the_reference(
        assert_parity, rows, hidden, inner, bias, activation, dtype, dense_above
    )


@needs_kernel
@pytest.mark.triton
def test_all_neurons_dead(dtype):
    weights, neurons = mlp(64, 96, dtype, bias=True)
    x = torch.randn(2, 64).to(dtype)
    y, product = sparse_mlp(x, weights, neurons, torch.tensor([9e9]), one_each(0, 0))
    assert not product.any()
    assert torch.equal(y, weights.down_bias.expand(2, -1))


@needs_kernel
@pytest.mark.triton
def test_a_row_does_not_depend_on_the_others(dtype):
    """On a GPU the gate is torch's product, whose sums have an order by batch: these are exact."""
    weights, neurons = mlp(96, 224, dtype)
    x = torch.randint(-2, 3, (4, 96)).to(dtype)
    thresholds = torch.tensor([0.05, 0.1, 0.3, 0.6])
    together, _ = sparse_mlp(x, weights, neurons, thresholds, one_each(0, 1, 2, 3), NEVER_DENSE)
    for row in range(4):
        alone, _ = sparse_mlp(
            x[row : row + 1].clone(), weights, neurons, thresholds, one_each(row), NEVER_DENSE
        )
        assert torch.equal(alone[0], together[row])


@needs_kernel
@pytest.mark.triton
def test_dead_neurons_are_not_read(dtype):
    weights, neurons = mlp(64, 256, dtype)
    x = torch.randn(1, 64).to(dtype)
    thresholds, entries = torch.tensor([0.3]), one_each(0)
    wanted, product = sparse_mlp(x, weights, neurons, thresholds, entries)
    neurons[product[0] == 0] = float("nan")
    assert 0 < (product == 0).sum() < 256
    y, _ = sparse_mlp(x, weights, neurons, thresholds, entries)
    assert torch.equal(y, wanted)


@needs_kernel
@pytest.mark.triton
def test_rows_without_a_threshold_keep_everything(dtype):
    weights, neurons = mlp(64, 96, dtype)
    x = torch.randn(2, 64).to(dtype)
    thresholds, entries = torch.tensor([9.0, -1.0]), one_each(0, 1)
    y, _ = sparse_mlp(x, weights, neurons, thresholds, entries)
    assert_close(y, sparse_mlp_reference(x, weights, thresholds, entries)[0])


@needs_kernel
@pytest.mark.triton
@pytest.mark.parametrize("dense_above", [NEVER_DENSE, -1.0], ids=["sparse", "dense"])
def test_nan_is_not_left_out(dense_above, dtype):
    weights, neurons = mlp(64, 96, dtype)
    x = torch.randn(2, 64).to(dtype)
    x[0, 3] = float("nan")
    y, _ = sparse_mlp(x, weights, neurons, torch.tensor([0.3]), one_each(0, 0), dense_above)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")
def test_a_graph_replays_it(dtype):
    weights, neurons = mlp(64, 256, dtype)
    x, pool = torch.randn(2, 64).to(dtype), MemoryPool()
    thresholds, entries = torch.tensor([0.3, 0.1]), one_each(0, 1)
    with capture(pool) as calls:
        y, _ = sparse_mlp(x, weights, neurons, thresholds, entries)
    x.copy_(torch.randn(2, 64))
    Graph(calls).replay()
    assert torch.equal(y, sparse_mlp(x, weights, neurons, thresholds, entries)[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_neurons_it_is_the_formula(dtype, activation):
    gate, up, down = torch.randn(3, 40, 40, dtype=dtype) / 40**0.5
    gate_up = pack_linear(torch.cat([gate, up]))
    weights = MlpWeights(gate_up, None, pack_linear(down), None, activation)
    x = torch.randn(6, 40, dtype=dtype)  # more rows than the kernel takes
    entries = Entries(*(torch.tensor([v], dtype=torch.int32) for v in (0, 1, 0, 6)))
    y, _ = sparse_mlp(x, weights, None, torch.tensor([0.3]), entries)
    act = ACTIVATIONS[activation](x @ gate.T)
    wanted = (act * (act.abs() > 0.3) * (x @ up.T)) @ down.T
    torch.testing.assert_close(y, wanted)
