"""Inputs of linears and MLPs of Llama-3-8B and Qwen2.5-7B."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.entries import Entries
from turret_kernels.gpu.threshold import act_threshold_mul, threshold

THRESHOLDS = meta(64, dtype=torch.float32)


def _entries() -> Entries:
    host = [torch.tensor([x], dtype=torch.int32) for x in (0, 8)]
    return Entries(meta(1, dtype=torch.int32), meta(1, dtype=torch.float32), *host)


# Narrow: which entries act on the row (two numbers), and an entry's slot and threshold.
GATES = [
    Gate("input of 4096", lambda: threshold(meta(8, 4096), THRESHOLDS, _entries()), 40, narrow=4),
    Gate(
        "input of 18944",
        lambda: threshold(meta(8, 18944), THRESHOLDS, _entries()),
        registers=40,
        narrow=4,
    ),
    Gate(
        "gate of 14336",
        lambda: act_threshold_mul(meta(8, 2 * 14336), THRESHOLDS, _entries(), "silu"),
        registers=44,
        narrow=4,
    ),
]
