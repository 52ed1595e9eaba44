"""The search for a fusion weight. Torch's needs its numbers on the host: it has no graph."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random

from turret_kernels.dynamic_weights import dynamic_weights
from turret_kernels.fusion import Fusion, Members

SIZES = [(requests, 128256) for requests in (1, 8, 32)]
TINY = [(2, 50)]
_PASSES = 5


def case(requests: int, vocab: int) -> Case:
    """A large model, a base and one expert each."""
    parts = {"members": (3, requests, vocab, 4)}
    cached = {"members": (_PASSES, 3, requests, vocab, 4)}

    def make(device: str, sets: int) -> dict[str, Calls]:
        rows = [(3 * q, 3 * q + 1, 3 * q + 2) for q in range(requests)]
        fusions = [Fusion(rows=row, limit=2.0) for row in rows]
        members = Members.of(fusions, torch.device(device))
        inputs = [
            (64 * random(3 * requests, vocab, device=device, dtype=torch.float32),)
            for _ in range(sets)
        ]
        return {"turret": bind(lambda logits: dynamic_weights(logits, members), inputs)}

    return Case(f"{requests} of 3x{vocab}", parts, make, launches=_PASSES + 2, cached=cached)
