"""Changes in a batch of Llama-3's vocabulary."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.penalties import apply_penalties


def _launch(count: int) -> None:
    apply_penalties(meta(8, 128256, dtype=torch.float32), meta(5, count, dtype=torch.int32))


# Narrow: everything. Rows of the table lie anywhere, the logits too, and one lane has one change.
GATES = [Gate("1000", lambda: _launch(1000), registers=28, narrow=7)]
