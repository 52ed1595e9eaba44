"""KV blocks: reference counts, a free list, and what they hold. No torch.

A full block is known by the content of everything before and in it: a chain of hashes that starts
from the recipe's digest and the cache namespace; adapters that act on some positions only enter
where they act. Equal keys mean equal keys and values, so a block
may be shared; a free block keeps its content until it is needed for something else
(`prefix_cache.py`).
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from turret_server.engine.prefix_cache import PrefixCache


def root_key(namespace: str, recipe: str) -> bytes:
    """The chain's first link. Length-prefixed: no choice of names makes two of them equal."""
    parts = [part.encode() for part in (namespace, recipe)]
    data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.blake2b(data, digest_size=16).digest()


def next_key(parent: bytes, tokens: Sequence[int], acting: str = "") -> bytes:
    """The key of the block that follows `parent` and holds `tokens`.

    Blocks are of one size, so nothing runs together.

    Args:
        parent: key of the block before, or the root.
        tokens: a full block.
        acting: what acts on the block beside the recipe in the root, and where.
    """
    data = parent + array("q", tokens).tobytes() + acting.encode()
    return hashlib.blake2b(data, digest_size=16).digest()


class BlockPool:
    """All KV blocks of the engine.

    Args:
        num_blocks: how many there are.
        block_tokens: tokens in each.
        clock: monotonic seconds.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._blank = deque(range(num_blocks))  # free, without content
        self._cache = PrefixCache(clock)  # free, with content

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds (their content may still serve a prefix)."""
        return len(self._blank) + len(self._cache)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `keys`; takes no reference."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """Take a reference on each; they have content."""
        for block in blocks:
            if self._references[block] == 0:
                self._cache.remove(block)
            self._references[block] += 1

    def try_allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each and no content, or None."""
        if count > self.num_free:
            return None
        blocks = [self._blank.popleft() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: Sequence[int], owner: str = "") -> None:
        """Drop a reference on each; the tail of a prefix is reused before its head.

        Args:
            blocks: in order.
            owner: who used them last, and shall keep what is free now.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} released twice"
            if self._references[block] == 0:
                if self._keys[block] is None:
                    self._blank.appendleft(block)
                else:
                    self._cache.add(block, owner)

    def register(self, block: int, key: bytes) -> None:
        """`block` now holds what `key` names. The first block with a key keeps it."""
        if key not in self._by_key:
            self._forget(block)
            self._by_key[key] = block
            self._keys[block] = key

    def _evict(self) -> int:
        block = self._cache.evict()
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None
