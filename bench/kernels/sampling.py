"""A token for every row of Llama-3's vocabulary, beside a sort."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, random, torch_peers
from torch import Tensor

from turret_kernels.sampling import sample

# Rows, vocabulary, top-p.
SIZES = [(rows, 128256, top_p) for top_p in (1.0, 0.9) for rows in (1, 8, 64)]
TINY = [(2, 100, 0.9), (2, 100, 1.0)]
_PASSES = 6
# Settings are on the device, since a graph holds no transfer: five kernels to gather them, which a
# server sends in one piece, and all of the search's, which end at once where there is no filter.
_SETTINGS = 5


def case(rows: int, vocab: int, top_p: float) -> Case:
    """Statistics; passes of the search and the sum of what is kept; the draw."""
    parts = {"logits": (rows, vocab, 4)}
    cached = {"logits": (_PASSES + 1, rows, vocab, 4)} if top_p < 1 else {}

    def make(device: str, sets: int) -> dict[str, Calls]:
        inputs = [
            (256 * random(rows, vocab, device=device, dtype=torch.float32),) for _ in range(sets)
        ]
        heat, nucleus = torch.ones(rows, device=device), torch.full((rows,), top_p, device=device)
        min_p = torch.zeros_like(heat)
        top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        uniform = torch.rand(rows, dtype=torch.float64, device=device)

        def run(logits: Tensor) -> Tensor:
            probs = (logits / heat[:, None]).softmax(-1)
            if top_p == 1:
                past = probs.cumsum(-1) <= uniform[:, None].float() * probs.sum(-1, keepdim=True)
                return past.sum(-1)
            values, order = probs.sort(-1, descending=True)
            values *= values.cumsum(-1) - values < nucleus[:, None]
            sums = torch.zeros_like(values).scatter_(1, order, values).cumsum(-1)
            return (sums <= uniform[:, None].float() * sums[:, -1:]).sum(-1)

        ours = bind(lambda logits: sample(logits, heat, top_k, nucleus, min_p, uniform), inputs)
        return {"turret": ours, **torch_peers(run, inputs)}

    name = f"{rows}x{vocab}, top-p {top_p:g}"
    return Case(name, parts, make, launches=_PASSES + 3 + _SETTINGS, cached=cached)
