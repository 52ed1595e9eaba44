"""One expert, in the vocabulary of Llama-3."""

import torch
from tests.kernels.gates.compiler import meta
from tests.kernels.gates.gate import Gate

from turret_kernels.fusion import Fusion, Members
from turret_kernels.gpu import dynamic_weights


def _launch() -> torch.Tensor:
    members = Members.of([Fusion(rows=(0, 1, 2), limit=2.0)], torch.device("meta"))
    return dynamic_weights.dynamic_weights(meta(3, 128256, dtype=torch.float32), members, passes=1)


# Narrow: tables of the members, states, and what is summed: one number each. Three rows are wide.
GATES = [
    Gate("128256, targets", _launch, kernel="moments_kernel", registers=100, shared=32, narrow=18),
    Gate("128256, a pass", _launch, kernel="search_kernel", registers=136, shared=4096, narrow=32),
    Gate("128256, choice", _launch, kernel="weights_kernel", registers=132, shared=256, narrow=16),
]
