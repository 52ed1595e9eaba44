"""The vocabularies of Llama-3 and of Llama-2."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.gpu.token_mask import apply_token_mask


def _launch(vocab: int) -> None:
    rows, mask = meta(2, dtype=torch.int32), meta(2, vocab // 32, dtype=torch.int32)
    apply_token_mask(meta(8, vocab, dtype=torch.float32), rows, mask)


# Narrow: the row, and two words of its mask.
GATES = [
    Gate("128256", lambda: _launch(128256), registers=32, narrow=3),
    Gate("32000", lambda: _launch(32000), registers=32, narrow=3),
]
