"""What tests of every layer share."""

from __future__ import annotations

import pytest


class Clock:
    """Seconds that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
