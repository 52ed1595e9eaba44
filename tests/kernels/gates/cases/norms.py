"""A hidden state of Llama-3-8B and of Qwen2.5-7B; the heads of Qwen3's q norm, in a fused row."""

from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu import norms


def _heads(count: int, dim: int) -> object:
    fused = meta(8, (count + 2 * 8) * dim)
    x = fused[:, : count * dim].view(8, count, dim)
    return norms.rms_norm(x, meta(dim), 1e-6)


GATES = [
    Gate("4096", lambda: norms.rms_norm(meta(8, 4096), meta(4096), 1e-5), registers=40, shared=64),
    Gate(
        "4096 + residual",
        lambda: norms.add_rms_norm(meta(8, 4096), meta(8, 4096), meta(4096), 1e-5),
        registers=52,
        shared=64,
    ),
    Gate(
        "3584 + residual",
        lambda: norms.add_rms_norm(meta(8, 3584), meta(8, 3584), meta(3584), 1e-6),
        registers=52,
        shared=64,
    ),
    Gate("32 heads of 128", lambda: _heads(32, 128), registers=48, shared=512, narrow=1),
]
