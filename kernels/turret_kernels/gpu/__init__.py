"""The GPU's kernels: Triton, one file per op, as `native/` is for CPUs.

A file here holds an op's kernels and the function that launches them; the public function in
`turret_kernels/<op>.py` asks `takes` and calls it. Those files import triton, which a CPU does not
need, so they are themselves imported by the first tensor that needs them.

TRITON_INTERPRET=1 (Triton's own switch) runs the same kernels on the CPU, one program after
another, in numpy: exact masks and addresses without a GPU, for the tests.
"""

from __future__ import annotations

import logging
import os
import re

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MINIMUM = (3, 6)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter adds and compares bfloat16 as if it were uint16.
DTYPES = frozenset({torch.float16, torch.float32} | (set() if INTERPRETED else {torch.bfloat16}))


def takes(x: Tensor) -> bool:
    """Whether the Triton kernels compute what is asked of this tensor."""
    return AVAILABLE and (x.is_cuda or INTERPRETED) and x.dtype in DTYPES


def serves(device: torch.device) -> bool:
    """Whether adapters on this device run Triton kernels, which CUDA graphs can hold."""
    return AVAILABLE and device.type == "cuda"


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The same tensor on a device. The host does not wait for the transfer."""
    if x.device == device:
        return x
    return _pinned(x, device).to(device, non_blocking=True)


def fill(out: Tensor, x: Tensor) -> None:
    """Copy a tensor of the host into one of any device, without waiting for that either.

    From memory that is not pinned the driver may wait for all that the device still has to do.
    """
    out.copy_(_pinned(x, out.device), non_blocking=True)


def _pinned(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory() if device.type == "cuda" else x


def _available() -> bool:
    """Whether triton is there; not asked of a torch that could not use it."""
    if not (INTERPRETED or torch.version.cuda or torch.version.hip):
        return False
    try:
        import triton
    except ImportError:
        log.warning("no triton: GPU tensors take the slow torch paths; pip install triton")
        return False
    major, minor = re.findall(r"\d+", triton.__version__)[:2]
    if (int(major), int(minor)) < MINIMUM:
        log.warning(
            "triton %s is older than %d.%d: GPU tensors take the slow torch paths; upgrade torch",
            triton.__version__,
            *MINIMUM,
        )
        return False
    return True


AVAILABLE = _available()
