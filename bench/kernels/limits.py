"""What devices can do, and what a case should take on one."""

from __future__ import annotations

from dataclasses import dataclass

from bench.kernels.case import Case

# Shares of the data sheet's numbers that a large copy and a large matrix product reach: an H100
# copies at 3.0 TB/s and multiplies at 790 TFLOP/s.
_COPIED, _MULTIPLIED = 0.9, 0.8
# A kernel of a graph that waits for the one before: 1.3 us between the two, the rest for its first
# loads and last stores. An estimate, which the first run on a GPU replaces.
_LAUNCH_US = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a device, per microsecond; and microseconds of a kernel that has nothing to do."""

    bytes_per_us: float
    l2_bytes_per_us: float
    flop_per_us: float
    launch_us: float

    def floor_us(self, case: Case) -> float:
        """What memory and arithmetic allow."""
        return max(case.bytes / self.bytes_per_us, case.flop / self.flop_per_us)

    def predicted_us(self, case: Case) -> float:
        """What we expect."""
        launches = case.launches * self.launch_us
        return (
            launches + self.floor_us(case) / case.share + case.cached_bytes / self.l2_bytes_per_us
        )


def _card(terabytes: float, l2_terabytes: float, teraflop: float) -> Limits:
    """Of a data sheet's numbers per second: memory, and dense bfloat16."""
    memory, product = _COPIED * terabytes * 1e6, _MULTIPLIED * teraflop * 1e6
    return Limits(memory, l2_terabytes * 1e6, product, _LAUNCH_US)


# NVIDIA's data sheets: A100 80GB SXM 2,039 GB/s, 312 TFLOP/s; H100 SXM 3.35 TB/s and H200 4.8 TB/s,
# both 989 TFLOP/s without sparsity. They say nothing of L2, whose numbers are estimates.
CARDS = {
    "A100": _card(2.039, 4.0, 312),
    "H100": _card(3.35, 5.5, 989),
    "H200": _card(4.8, 5.5, 989),
}
