import pytest
import torch

from turret_kernels import native
from turret_kernels.activation import act_mul
from turret_kernels.entries import Entries
from turret_kernels.graph import Graph, MemoryPool, capture
from turret_kernels.linear import linear, pack_linear
from turret_kernels.low_rank import RankPool, RankSlices, low_rank, write_rank_rows
from turret_kernels.norms import add_rms_norm

pytestmark = pytest.mark.skipif(native.lib is None, reason="graphs record native kernels")


def network():
    up, down = (pack_linear(torch.randn(*s).bfloat16() / 8) for s in [(128, 64), (64, 64)])
    gain = torch.randn(64).bfloat16()

    def run(x, residual):
        for _ in range(3):
            x = linear(act_mul(linear(add_rms_norm(x, residual, gain, 1e-5), up), "silu"), down)
        return x

    return run


def test_a_replay_computes_what_the_calls_would():
    run, static_x, static_r = (
        network(),
        torch.zeros(5, 64).bfloat16(),
        torch.zeros(5, 64).bfloat16(),
    )
    with capture(MemoryPool()) as calls:
        out = run(static_x, static_r)
    graph = Graph(calls)
    for _ in range(3):
        x, r = torch.randn(5, 64).bfloat16(), torch.randn(5, 64).bfloat16()
        static_x.copy_(x)
        static_r.copy_(r)
        graph.replay()
        expected = run(x, r)
        assert torch.equal(out, expected)
        assert torch.equal(static_r, r)


def test_blocks_are_reused_within_and_across_graphs():
    pool, run = MemoryPool(), network()
    x, r = torch.zeros(5, 64).bfloat16(), torch.zeros(5, 64).bfloat16()
    for _ in range(4):
        with capture(pool) as calls:
            out = run(x, r)
        assert len(calls) == 12
        del out
    assert len(pool._free) <= 4


def test_a_torch_op_cannot_be_captured():
    x = torch.randn(2, 64).bfloat16()
    with pytest.raises(RuntimeError, match="cannot be captured"), capture(MemoryPool()):
        x + 1
    with pytest.raises(RuntimeError, match="cannot be captured"), capture(MemoryPool()):
        x.add_(1)
    assert native.allocate is native.torch_empty


def test_an_eager_step_leaves_a_recorded_one_as_it_is():
    """Both use the tables of the same adapters, with weights that lie elsewhere."""

    def entries(weight, rows):
        one = torch.tensor([rows], dtype=torch.int32)
        return Entries(torch.zeros_like(one), torch.tensor([weight]), torch.zeros_like(one), one)

    pool = RankPool(
        a=torch.zeros(8, 64).bfloat16(),
        b=torch.zeros(8, 32).bfloat16(),
        slots=torch.tensor([[0], [8], [0]], dtype=torch.int32),
    )
    write_rank_rows(pool, 0, torch.randn(8, 64), torch.randn(8, 32))
    slices, x = RankSlices([pool], [0]), torch.randn(3, 64).bfloat16()
    recorded, eager = torch.zeros(3, 32).bfloat16(), torch.zeros(3, 32).bfloat16()
    static = entries(1.0, 3)
    with capture(MemoryPool()) as calls:
        low_rank(recorded, x, slices, static)
    expected = recorded.clone()
    low_rank(eager, x, slices, entries(-2.0, 3))
    recorded.zero_()
    Graph(calls).replay()
    assert torch.equal(recorded, expected)
