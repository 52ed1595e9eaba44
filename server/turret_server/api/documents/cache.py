"""Pages of files that were read lately: a conversation sends its documents with every turn."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from turret_server.pipeline.documents.page import Page


class ReadCache:
    """Remembers the pages of files by their content; the least recently used leave first.

    Args:
        max_words: of all pages that are kept; a word takes some 400 bytes.
    """

    def __init__(self, max_words: int) -> None:
        self._max_words = max_words
        self._num_words = 0
        self._found: OrderedDict[bytes, list[Page]] = OrderedDict()

    @staticmethod
    def key(namespace: str, data: bytes, ocr: str, pages: Sequence[int] | None) -> bytes:
        """What identifies a reading. For a thread: it goes over all of a file.

        Args:
            namespace: whose files are not to be told from a first reading by others.
            data: of the file.
            ocr: see `PicturePool.read`.
            pages: see there.
        """
        sha = hashlib.sha256(f"{namespace}\0{ocr}\0{pages}\0".encode())
        sha.update(data)
        return sha.digest()

    def get(self, key: bytes) -> list[Page] | None:
        """The pages of an earlier reading."""
        if (pages := self._found.get(key)) is not None:
            self._found.move_to_end(key)
        return pages

    def put(self, key: bytes, pages: list[Page]) -> None:
        """Remember a reading, unless it is larger than all that may be kept."""
        size = _size(pages)
        if key in self._found or size > self._max_words:
            return
        self._found[key] = pages
        self._num_words += size
        while self._num_words > self._max_words:
            _, oldest = self._found.popitem(last=False)
            self._num_words -= _size(oldest)


def _size(pages: Sequence[Page]) -> int:
    return sum(1 + len(page.words) for page in pages)
