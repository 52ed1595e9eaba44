"""What an op's file hands to the frame: `SIZES`, `TINY` (for tests) and `case(*size)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Calls = list[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work, and what it should take.

    Attributes:
        name: sizes, in a few words.
        parts: what one call moves at least between memory and processors, each operand by the
            factors whose product is its bytes.
        make: from a device and how many sets of operands: by who does it, "turret" among them, the
            same work on each set.
        launches: kernels of one call, where it is ours.
        share: of the floor that we expect to reach where bytes or flop decide.
        flop: of one call.
        cached: what is read again, as `parts`: L2 holds it.
    """

    name: str
    parts: Mapping[str, tuple[int, ...]]
    make: Callable[[str, int], dict[str, Calls]]
    launches: int = 1
    share: float = 0.85
    flop: int = 0
    cached: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All parts."""
        return sum(math.prod(factors) for factors in self.parts.values())

    @property
    def cached_bytes(self) -> int:
        """All that is read again."""
        return sum(math.prod(factors) for factors in self.cached.values())

    @property
    def arithmetic(self) -> str:
        """Where the bytes come from."""
        text = " + ".join(f"{what} {_product(factors)}" for what, factors in self.parts.items())
        again = "".join(f"; again {what} {_product(f)}" for what, f in self.cached.items())
        return text + again


def _product(factors: tuple[int, ...]) -> str:
    return "·".join(str(factor) for factor in factors)
