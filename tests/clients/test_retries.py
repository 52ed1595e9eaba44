from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

from turret_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    EngineUnavailable,
    Overloaded,
)
from turret_client.retries import retry_after_s, wait_before_retry

from_server = {"data": []}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "3", "retry-after-ms": "soon"}, 3.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
    ],
)
def test_reads_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_reads_a_date() -> None:
    wait_s = retry_after_s({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert wait_s is not None
    assert 25 < wait_s < 31


def test_backs_off_exponentially_without_a_hint() -> None:
    waits = [wait_before_retry(Overloaded("x"), attempt, 9) for attempt in range(6)]
    assert waits == [0.5, 1, 2, 4, 8, 8]


def test_jitter_only_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.999)
    wait_s = wait_before_retry(Overloaded("x", retry_after_s=4.0), 0, 2)
    assert wait_s is not None
    assert 4.0 < wait_s < 5.0


def test_more_than_a_minute_is_left_to_the_caller() -> None:
    assert wait_before_retry(Overloaded("x", retry_after_s=61.0), 0, 2) is None


@pytest.mark.parametrize(("status", "code"), [(429, "overloaded"), (503, "engine_unavailable")])
def test_waits_as_long_as_the_server_asks(
    script: Any, client: Client, error: Any, waits: list[float], status: int, code: str
) -> None:
    script.answers(
        error(status, code, retry_after="2", retry_after_ms="1500"),
        error(status, code, retry_after="2"),
        from_server,
    )
    assert client.models() == ()
    assert waits == [1.5, 2.0]


async def test_waits_as_long_as_the_server_asks_async(
    script: Any, async_client: AsyncClient, error: Any, waits: list[float]
) -> None:
    script.answers(error(429, "overloaded", retry_after_ms="1500"), from_server)
    assert await async_client.models() == ()
    assert waits == [1.5]


def test_gives_up_with_the_last_error(script: Any, client: Client, error: Any) -> None:
    script.answers(error(429, "overloaded"), error(503, "engine_unavailable", retry_after="1"))
    with pytest.raises(EngineUnavailable) as caught:
        client.models()
    assert len(script.requests) == 3
    assert caught.value.retry_after_s == 1.0


def test_the_number_of_retries_can_be_chosen(script: Any, error: Any) -> None:
    script.answers(error(429, "overloaded"))
    with pytest.raises(Overloaded):
        Client(transport=httpx2.MockTransport(script), max_retries=0).models()
    assert len(script.requests) == 1


def test_a_refused_connection_is_tried_again(script: Any, client: Client) -> None:
    script.answers(httpx2.ConnectError("refused"), from_server)
    assert client.models() == ()


def test_a_request_that_may_have_been_heard_is_not_repeated(script: Any, client: Client) -> None:
    script.answers(httpx2.ReadError("reset"), from_server)
    with pytest.raises(ConnectionFailed):
        client.models()


def test_a_wrong_request_is_not_repeated(script: Any, client: Client, error: Any) -> None:
    script.answers(error(400, "invalid_value", retry_after="1"), from_server)
    with pytest.raises(BadRequest):
        client.models()


def test_a_stream_is_retried_before_it_begins(
    script: Any, client: Client, error: Any, events: Any
) -> None:
    script.answers(error(429, "overloaded"), events())
    assert list(client.chat("Hi", stream=True)) == []
    assert len(script.requests) == 2


def test_probes_are_not_retried(script: Any, client: Client, error: Any) -> None:
    script.answers(error(503, "engine_unavailable"))
    assert (client.health(), client.ready()) == (False, False)
    assert [request.url.path for request in script.requests] == ["/health", "/ready"]
