"""Members of Llama-3's vocabulary made one row: given weights, and contrastive decoding."""

from __future__ import annotations

import math

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch import Tensor

from turret_kernels.fusion import Fusion, Members, fuse

# Weights of a request's members, plausibility, requests, vocabulary.
SIZES = [
    *[((1.0, 0.5, -0.5), 0.0, requests, 128256) for requests in (1, 8, 32)],
    *[((1.0, -0.5), 0.1, requests, 128256) for requests in (1, 8, 32)],
]
TINY = [((1.0, 0.5, -0.5), 0.0, 2, 50), ((1.0, -0.5), 0.1, 2, 50)]


def case(weights: tuple[float, ...], plausible: float, requests: int, vocab: int) -> Case:
    """A plausible token is likely enough to the first member, whose maximum is found before."""
    count = len(weights)
    parts = {"members": (count, requests, vocab, 4), "out": (requests, vocab, 4)}
    cached = {"first member": (requests, vocab, 4)} if plausible else {}

    def make(device: str, sets: int) -> dict[str, Calls]:
        rows = [tuple(range(q * count, (q + 1) * count)) for q in range(requests)]
        fusions = [Fusion(rows=row, weights=weights, plausible=plausible) for row in rows]
        members = Members.of(fusions, torch.device(device))
        factors = torch.tensor(weights, device=device)[:, None]
        inputs = [
            (random(requests * count, vocab, device=device, dtype=torch.float32),)
            for _ in range(sets)
        ]

        def run(logits: Tensor) -> Tensor:
            grouped = logits.view(requests, count, vocab)
            found = (grouped * factors).sum(1)
            if plausible:
                first = grouped[:, 0]
                least = first.amax(-1, keepdim=True) + math.log(plausible)
                found = torch.where(first >= least, found, float("-inf"))
            return found

        ours = bind(lambda logits: fuse(logits, members)[0], inputs)
        return {"turret": ours, **torch_peers(run, inputs)}

    name = f"{requests} of {count}x{vocab}" + (", plausible" if plausible else "")
    return Case(name, parts, make, launches=2 if plausible else 1, cached=cached)
