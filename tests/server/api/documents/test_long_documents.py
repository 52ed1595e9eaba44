"""Long documents are tokenised where they make no prompt wait: in the threads of long texts."""

from __future__ import annotations

import threading

import pytest

from turret_server.pipeline.tokenizer import Tokenizer

LONG = {"words": ["word"] * 60_000, "boxes": [[0, 0, 9, 9]] * 60_000}  # 300,000 characters
SHORT = {"words": ["word"], "boxes": [[0, 0, 9, 9]]}


@pytest.fixture
def counted_in(monkeypatch) -> set[str]:
    """The threads that tokens of pages were counted in."""
    names: set[str] = set()
    count = Tokenizer.count

    def noted(tokenizer, texts):
        names.add(threading.current_thread().name.rpartition("_")[0])
        return count(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "count", noted)
    return names


@pytest.mark.parametrize(("data", "threads"), [(LONG, "long-texts"), (SHORT, "asyncio")])
async def test_long_documents_have_threads_of_their_own(client, counted_in, data, threads):
    part = {"type": "document", "document": {"data": data}}
    await client.chat([part, {"type": "text", "text": "What is it?"}], layout={"mode": "plain"})
    assert counted_in == {threads}
