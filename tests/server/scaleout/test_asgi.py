"""An app run for a request that is whole: the API behaves as behind a socket."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

from turret_server.scaleout import asgi
from turret_server.scaleout.wire import Forwarded, Head


def asked(**body: object) -> Forwarded:
    headers = ((b"content-type", b"application/json"), (b"x-request-id", b"mine"))
    data = json.dumps({"prompt": "Hi", **body}).encode()
    return Forwarded(method="POST", path=b"/v1/completions", headers=headers, body=data)


def answers(app, request):
    return asgi.run(app, asgi.scope_of(request), request.body)


async def test_an_answer(app):
    head, *body = [item async for item in answers(app, asked(max_tokens=3))]
    assert isinstance(head, Head)
    assert (head.status, head.is_stream) == (200, False)
    assert dict(head.headers)[b"x-request-id"] == b"mine"
    assert json.loads(b"".join(body))["usage"]["completion_tokens"] == 3


async def test_a_stream_comes_event_by_event(app, engine):
    engine.delay_s = 0.005
    head, *body = [item async for item in answers(app, asked(max_tokens=4, stream=True))]
    assert head.is_stream
    assert len(body) >= 4
    assert b"".join(body).endswith(b"data: [DONE]\n\n")


async def test_paths_are_unquoted_once():
    scope = asgi.scope_of(Forwarded(method="GET", path=b"/v1/adapters/a%2520b", query=b"x=%20"))
    assert scope["path"] == "/v1/adapters/a%20b"
    assert (scope["raw_path"], scope["query_string"]) == (b"/v1/adapters/a%2520b", b"x=%20")


async def test_leaving_frees_the_engine(app, engine):
    engine.delay_s = 0.001
    async with aclosing(answers(app, asked(max_tokens=1000, stream=True))) as items:
        async for item in items:
            if not isinstance(item, Head):
                break
    for _ in range(100):
        if engine.cancelled:
            break
        await asyncio.sleep(0.01)
    assert engine.cancelled == [engine.requests[0].id]


async def test_who_leaves_does_not_keep_others_from_hearing_of_the_answer(app):
    """A client that left while its adapter loaded left it on one replica alone, for ever."""
    heard = asyncio.get_running_loop().create_future()

    async def slow(scope, receive, send):
        await leaves.wait()
        await app(scope, receive, send)

    async def answered(status):
        heard.set_result(status)

    leaves = asyncio.Event()
    request = Forwarded(method="GET", path=b"/v1/models")
    items = asgi.run(slow, asgi.scope_of(request), b"", answered)
    waiting = asyncio.create_task(anext(items))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    leaves.set()
    async with asyncio.timeout(5):
        assert await heard == 200
