"""The MLPs of Llama-3-8B and of Qwen2.5-7B."""

from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.activation import silu_mul

GATES = [
    Gate("14336", lambda: silu_mul(meta(8, 2 * 14336)), registers=40),
    Gate("18944", lambda: silu_mul(meta(8, 2 * 18944)), registers=40),
]
