from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own; the folder with fetched adapters."""
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adapters"


@pytest.fixture
def files() -> dict[str, bytes]:
    """The files of an adapter, as far as nobody reads them."""
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 16}
