"""What an op's file hands to the frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work.

    Attributes:
        name: sizes, in a few words.
        calls: by who does it, "turret" among them, the same work on many sets of operands.
        bytes: least that one call moves between memory and processors.
        flop: of one call.
        launches: kernels of one call, where it is ours.
        share: of the floor that we expect to reach where bytes or flop decide.
    """

    name: str
    calls: dict[str, list[Callable[[], object]]]
    bytes: int
    flop: int
    launches: int
    share: float
