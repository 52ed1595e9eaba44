"""Which cached KV blocks go first: a flood of one tenant spares those of others. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

_KEPT_S = 600.0  # a block that nobody has used for longer is given up whoever has it


class PrefixCache:
    """Free blocks with content. Every operation takes constant time.

    A block that has to go is the oldest of the owner that has most: so none loses a block while
    another has more, and each can keep an equal share. What is older than ten minutes goes before,
    or owners that have gone would keep their share for ever.

    Only free blocks count: what requests use is the scheduler's to share out.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Block -> owner and when it was left, the longest unused first.
        self._blocks: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._owned: dict[str, OrderedDict[int, None]] = {}
        self._by_size: dict[int, OrderedDict[str, None]] = {}  # owners
        self._largest = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: int, owner: str) -> None:
        """A block that nobody uses any more."""
        self._blocks[block] = (owner, self._clock())
        owned = self._owned.setdefault(owner, OrderedDict())
        owned[block] = None
        self._resize(owner, len(owned) - 1, len(owned))

    def remove(self, block: int) -> None:
        """A block that is used again."""
        owner, _ = self._blocks.pop(block)
        owned = self._owned[owner]
        del owned[block]
        self._resize(owner, len(owned) + 1, len(owned))

    def evict(self) -> int:
        """Take out the block that is given up first; there is one."""
        block, (_, left_at) = next(iter(self._blocks.items()))
        if self._clock() - left_at < _KEPT_S:
            owner = next(iter(self._by_size[self._largest]))
            block = next(iter(self._owned[owner]))
        self.remove(block)
        return block

    def _resize(self, owner: str, before: int, after: int) -> None:
        if before:
            del self._by_size[before][owner]
        if after:
            self._by_size.setdefault(after, OrderedDict())[owner] = None
        else:
            del self._owned[owner]
        self._largest = max(self._largest, after)
        # By one at a time, so whoever was largest is at most one smaller now.
        if before and not self._by_size[before]:
            del self._by_size[before]
            self._largest -= before == self._largest
