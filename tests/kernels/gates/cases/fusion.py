"""Three members in the vocabularies of Llama-3 and of Llama-2."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.fusion import Fusion, Members
from turret_kernels.gpu import fusion


def _launch(vocab: int, plausible: float) -> torch.Tensor:
    wanted = Fusion(rows=(0, 1, 2), weights=(1.0, -1.0, 1.0), plausible=plausible)
    members = Members.of([wanted], torch.device("meta"))
    return fusion.fuse(meta(3, vocab, dtype=torch.float32), members, members.weight)


# Narrow: tables of the members, and sums of a member by part.
GATES = [
    Gate("128256", lambda: _launch(128256, 0), registers=48, narrow=6),
    Gate("32000", lambda: _launch(32000, 0), registers=48, narrow=6),
    Gate(
        "128256, plausible",
        lambda: _launch(128256, 0.1),
        kernel="fuse_kernel",
        registers=48,
        narrow=12,
    ),
    Gate(
        "128256, statistics",
        lambda: _launch(128256, 0.1),
        kernel="row_stats_kernel",
        registers=60,
        shared=32,
        narrow=8,
    ),
]
