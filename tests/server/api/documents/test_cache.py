from __future__ import annotations

from turret_server.api.documents.cache import ReadCache
from turret_server.pipeline.documents.page import Page, Word


def pages(words):
    return [Page([Word("a", (0.0,) * 8)] * words, 1, 1)]


def test_a_file_is_known_by_its_content_and_how_it_was_read():
    keys = {
        ReadCache.key("", b"a", "auto", None),
        ReadCache.key("", b"b", "auto", None),
        ReadCache.key("", b"a", "always", None),
        ReadCache.key("", b"a", "auto", [1]),
        ReadCache.key("other", b"a", "auto", None),
    }
    assert len(keys) == 5
    assert ReadCache.key("", b"a", "auto", [1]) in keys


def test_the_least_recently_used_leave_first():
    cache = ReadCache(max_words=20)
    for name in (b"a", b"b"):
        cache.put(name, pages(8))
    assert cache.get(b"a") == pages(8)
    cache.put(b"c", pages(8))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"large", pages(30))
    assert cache.get(b"large") is None
    assert cache.get(b"c") is not None


async def test_a_picture_that_is_sent_again_is_not_read_again(client, monkeypatch):
    reader, read = client.app.state.service.documents, []

    async def once(data, **options):
        read.append(options)
        return pages(1)

    monkeypatch.setattr(reader._pictures, "read", once)
    body = {"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    for _ in range(2):
        assert (await client.post("/v1/layout", body)).status == 200
    assert len(read) == 1
    await client.post("/v1/layout", {**body, "ocr": "always"})
    assert len(read) == 2
