"""A batch of Llama-3's vocabulary, and of Llama-2's."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu import sampling


def _launch(vocab: int, passes: int, filters: bool = True) -> torch.Tensor:
    logits, settings = meta(8, vocab, dtype=torch.float32), meta(8, 5, dtype=torch.float64)
    return sampling.sample_settings(logits, settings, passes, filters)


# Narrow: a row's settings and state, and what is kept per block: one number each.
GATES = [
    Gate(
        "128256",
        lambda: _launch(128256, 0, False),
        kernel="block_stats_kernel",
        registers=48,
        shared=128,
        narrow=3,
    ),
    Gate(
        "32000",
        lambda: _launch(32000, 0, False),
        kernel="block_stats_kernel",
        registers=48,
        shared=128,
        narrow=3,
    ),
    Gate(
        "128256, no filter",
        lambda: _launch(128256, 0, False),
        kernel="draw_kernel",
        registers=72,
        shared=128,
        narrow=8,
    ),
    Gate(
        "128256, filtered",
        lambda: _launch(128256, 0),
        kernel="draw_kernel",
        registers=72,
        shared=128,
        narrow=16,
    ),
    Gate(
        "128256, first pass",
        lambda: _launch(128256, 1),
        kernel="narrow_kernel",
        registers=104,
        shared=4096,
        narrow=17,
    ),
    Gate(
        "128256, after a pass",
        lambda: _launch(128256, 1),
        kernel="weigh_kernel",
        registers=200,
        shared=4096,
        narrow=20,
    ),
]
