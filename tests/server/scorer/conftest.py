from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_scorer import save_scorer


@pytest.fixture(scope="session")
def make_scorer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random scorer, "roberta" or "bert"."""

    def make(kind: str, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        save_scorer(folder, kind, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def cappy(make_scorer: Callable[..., Path]) -> Path:
    """As Cappy: RoBERTa with one output."""
    return make_scorer("roberta")
