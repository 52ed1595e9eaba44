"""The MLPs of Llama-3-8B, Qwen2.5-7B and Gemma 3 1B."""

from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.activation import act_mul

GATES = [
    Gate("14336", lambda: act_mul(meta(8, 2 * 14336), "silu"), registers=40),
    Gate("18944", lambda: act_mul(meta(8, 2 * 18944), "silu"), registers=40),
    Gate("6912, GELU", lambda: act_mul(meta(8, 2 * 6912), "gelu_tanh"), registers=40),
]
