"""What one OCR result may hold."""

from __future__ import annotations

import msgspec


class ReadLimits(msgspec.Struct, frozen=True):
    """What one document may hold.

    Attributes:
        max_bytes: of the OCR result. Its parsed form takes up to ten times as much, for a moment.
        max_pages: in it.
        max_words: in all its pages.
    """

    max_bytes: int = 64 << 20
    max_pages: int = 1000
    max_words: int = 500_000
