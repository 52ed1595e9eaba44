"""Retries, refusals and ends of streams, with replicas that a script plays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from turret_server.scaleout.relay import Relay, ReplicaLost, Whole
from turret_server.scaleout.wire import Accepted, Forwarded, Head, Item

JSON = ((b"content-type", b"application/json"), (b"retry-after", b"7"))
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"1"))
ASKED = Forwarded(method="POST", path=b"/v1/completions")


class Client:
    """What the client has got."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False

    async def send(self, message: Any) -> None:
        assert not self.ended
        if message["type"] == "http.response.start":
            assert not self.status
            self.status, self.headers = message["status"], dict(message["headers"])
            return
        assert self.status
        self.body += message["body"]
        self.ended = not message.get("more_body", False)


class Script:
    """Replicas that say what they are told to, one after the other; an exception is a death."""

    def __init__(self, *tries: list[Item | Exception]) -> None:
        self.tries = list(tries)
        self.asked: list[Forwarded] = []
        self.closed = 0

    async def ask(self, request: Forwarded) -> AsyncGenerator[Item]:
        self.asked.append(request)
        try:
            for item in self.tries.pop(0):
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed += 1


@pytest.fixture
def client() -> Client:
    return Client()


async def relay(client: Client, script: Script, request: Forwarded = ASKED) -> Whole | None:
    whole = await Relay(script.ask, accept_s=0.05).fetch(request, client.send)
    if whole is not None:
        await whole.send(client.send)
    assert client.ended
    assert script.closed == len(script.asked)
    return whole


def whole(status: int, body: bytes, replica: str = "a") -> list[Item | Exception]:
    return [Accepted(replica), Head(status, JSON), body]


async def test_an_answer_passes_with_its_headers(client):
    await relay(client, Script(whole(429, b'{"error":1}')))
    assert (client.status, client.body) == (429, b'{"error":1}')
    assert client.headers[b"retry-after"] == b"7"
    assert client.headers[b"content-length"] == b"11"
    assert client.headers[b"x-turret-replica"] == b"a"


@pytest.mark.parametrize("said", range(4))
async def test_a_death_before_the_answer_is_whole_is_not_seen(client, said):
    lost = [Accepted("a"), Head(200, JSON), b'{"ha', ReplicaLost()]
    script = Script([*lost[:said], ReplicaLost()], whole(200, b'{"whole":1}', "b"))
    await relay(client, script)
    assert (client.status, client.body) == (200, b'{"whole":1}')


async def test_the_next_try_avoids_the_replica_that_died(client):
    script = Script([Accepted("a"), Head(200, EVENTS), ReplicaLost()], whole(200, b"{}", "b"))
    await relay(client, script)
    assert [request.avoid for request in script.asked] == [frozenset(), {"a"}]


async def test_the_next_try_avoids_a_replica_that_died_before_its_answer_began(client):
    script = Script([Accepted("a"), ReplicaLost()], whole(200, b"{}", "b"))
    await relay(client, script)
    assert [request.avoid for request in script.asked] == [frozenset(), {"a"}]


async def test_an_escaped_path_of_administration_is_not_repeated(client):
    script = Script([Accepted("a"), ReplicaLost()], whole(201, b"{}", "b"))
    await relay(client, script, Forwarded(method="POST", path=b"/v1/%61dmin/keys"))
    assert len(script.asked) == 1
    assert client.status == 503


async def test_a_stream_passes_event_by_event(client):
    script = Script([Accepted("a"), Head(200, EVENTS), b"data: 1\n\n", b"data: [DONE]\n\n"])
    assert await relay(client, script) is None
    assert client.body == b"data: 1\n\ndata: [DONE]\n\n"
    assert b"x-request-id" not in client.headers  # Ray's proxy adds it


async def test_a_stream_that_has_begun_ends_with_an_error_event(client):
    await relay(client, Script([Accepted("a"), Head(200, EVENTS), b"data: 1\n\n", ReplicaLost()]))
    first, error, done, rest = client.body.decode().split("\n\n")
    assert (first, done, rest) == ("data: 1", "data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"


async def test_an_engine_that_restarts_is_passed_over(client):
    await relay(client, Script(whole(503, b"{}"), whole(200, b'{"x":1}', "b")))
    assert (client.status, client.headers[b"x-turret-replica"]) == (200, b"b")


async def test_the_refusal_of_all_is_told(client):
    await relay(client, Script(*[whole(503, b'{"error":"starting"}')] * 3))
    assert (client.status, client.body) == (503, b'{"error":"starting"}')
    assert client.headers[b"retry-after"] == b"7"


async def test_three_deaths_are_enough(client):
    await relay(client, Script(*[[Accepted("a"), ReplicaLost()]] * 3))
    assert (client.status, client.headers[b"retry-after"]) == (503, b"2")


async def test_administration_is_not_repeated(client):
    script = Script([Accepted("a"), ReplicaLost()])
    await relay(client, script, Forwarded(method="POST", path=b"/v1/admin/tenants/acme/keys"))
    assert client.status == 503


async def test_nobody_accepts(client):
    async def ask(request: Forwarded) -> AsyncGenerator[Item]:
        await asyncio.sleep(60)
        yield Accepted("a")

    found = await Relay(ask, accept_s=0.02).fetch(ASKED, client.send)
    assert found is not None
    assert (found.status, json.loads(found.body)["error"]["what"]) == (
        503,
        "no replica takes requests",
    )


@pytest.mark.parametrize("events", [[], [Head(200, EVENTS), b"data: 1\n\n"]])
async def test_a_fault_of_a_replica_is_an_error_and_no_retry(client, events):
    script = Script([Accepted("a"), *events, RuntimeError("secret")])
    await relay(client, script)
    assert client.status == (200 if events else 500)
    assert b"a fault of the server" in client.body
    assert b"secret" not in client.body


async def test_leaving_closes_what_the_replica_works_on(client):
    reached, closed = asyncio.Event(), asyncio.Event()

    async def ask(request: Forwarded) -> AsyncGenerator[Item]:
        try:
            yield Accepted("a")
            reached.set()
            await asyncio.sleep(60)
        finally:
            closed.set()

    task = asyncio.create_task(Relay(ask, accept_s=1).fetch(ASKED, client.send))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
