"""The client's error tree is the server's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import turret_client
from turret_client import Client, TurretError
from turret_client.errors import class_of_status, error_from_body
from turret_server import errors as server_errors
from turret_server.api.admission import QueueFull
from turret_server.api.error_responses import error_body, error_response
from turret_server.tenancy.ledger import UsageNotRecorded
from turret_server.tenancy.quotas import QuotaExceeded


def served_classes(
    root: type[server_errors.TurretError] = server_errors.TurretError,
) -> Iterator[type[server_errors.TurretError]]:
    """The errors that have a status of their own."""
    for cls in root.__subclasses__():
        if cls.__module__ == server_errors.__name__ and cls is not server_errors.StartupError:
            yield cls
            yield from served_classes(cls)


@pytest.mark.parametrize("cls", list(served_classes()), ids=lambda cls: cls.__name__)
def test_every_error_of_the_server_has_its_class(
    cls: type[server_errors.TurretError], script: Any
) -> None:
    raised = cls("the thing 'x' broke", "it was old", "Buy one.", param="things[0]")
    response = error_response(raised)
    script.answers(
        lambda: httpx2.Response(
            response.status_code, content=bytes(response.body), headers=dict(response.headers)
        )
    )
    client = Client(transport=httpx2.MockTransport(script), max_retries=0)
    with pytest.raises(TurretError) as caught:
        client.models()
    error = caught.value
    assert type(error).__name__ == cls.__name__
    assert type(error).__mro__[1].__name__ == cls.__mro__[1].__name__
    for name in ("status", "type", "code", "what", "why", "fix", "param", "retry_after_s"):
        assert getattr(error, name) == getattr(raised, name), name
    assert str(error) == str(raised)


def test_what_tenants_meet(script: Any) -> None:
    quota = QuotaExceeded("too many", "5 a minute", "Wait.", retry_after_s=90)
    for raised, cls in (
        (quota, turret_client.QuotaExceeded),
        (QueueFull("the queue of 'acme' is full"), turret_client.QueueFull),
        (UsageNotRecorded("the disk is full"), turret_client.UsageNotRecorded),
    ):
        response = error_response(raised)
        script.answers(
            lambda response=response: httpx2.Response(
                response.status_code, content=bytes(response.body), headers=dict(response.headers)
            )
        )
        with pytest.raises(cls) as caught:
            Client(transport=httpx2.MockTransport(script), max_retries=0).chat("Hi")
        assert caught.value.retryable
        assert caught.value.retry_after_s == raised.retry_after_s


def test_errors_inside_a_stream_are_told_apart_by_their_code() -> None:
    body = error_body(server_errors.EngineUnavailable("the engine died"))
    assert type(error_from_body(body)) is turret_client.EngineUnavailable


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequest"),
        (404, "NotFound"),
        (429, "Overloaded"),
        (451, "BadRequest"),
        (500, "ServerError"),
        (502, "ServerError"),
        (503, "EngineUnavailable"),
    ],
)
def test_a_bare_status_picks_the_general_class(status: int, name: str) -> None:
    assert class_of_status(status).__name__ == name


def test_a_proxys_page_becomes_an_error_with_its_status(script: Any, client: Client) -> None:
    script.answers(lambda: httpx2.Response(502, html="<h1>Bad Gateway</h1>"))
    with pytest.raises(turret_client.ServerError, match="502 Bad Gateway") as caught:
        client.models()
    assert caught.value.status == 502


def test_other_servers_numeric_codes_are_kept(script: Any, client: Client) -> None:
    error = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
    script.answers(lambda: httpx2.Response(404, json=error))
    with pytest.raises(turret_client.NotFound, match="File Not Found") as caught:
        client.models()
    assert caught.value.code == 404


def test_the_request_id_is_kept(script: Any, client: Client, error: Any) -> None:
    script.answers(error(400, "invalid_value", x_request_id="r7"))
    with pytest.raises(turret_client.BadRequest) as caught:
        client.models()
    assert caught.value.request_id == "r7"


@pytest.mark.parametrize("body", [None, 3, [], {}, {"data": 3}, {"data": [{}]}, {"data": [3]}])
def test_what_is_no_list_of_models_is_refused(script: Any, client: Client, body: Any) -> None:
    script.answers(lambda: httpx2.Response(200, json=body))
    with pytest.raises(turret_client.InvalidAnswer):
        client.models()


@pytest.mark.parametrize("body", [None, 3, {}, {"choices": 3}, {"choices": [{"index": 0}]}])
def test_what_is_no_completion_is_refused(script: Any, client: Client, body: Any) -> None:
    script.answers(lambda: httpx2.Response(200, json=body))
    with pytest.raises(turret_client.InvalidAnswer):
        client.chat("Hi")


def test_what_is_no_json_is_refused(script: Any, client: Client) -> None:
    script.answers(lambda: httpx2.Response(200, text="hello"))
    with pytest.raises(turret_client.InvalidAnswer, match="not JSON"):
        client.models()


@pytest.mark.parametrize(
    ("raised", "what", "retryable"),
    [
        (httpx2.ConnectError("refused"), "no server answers at", True),
        (httpx2.ConnectTimeout("slow"), "no server answers at", True),
        (httpx2.ReadTimeout("slow"), "did not answer in time", False),
        (httpx2.ReadError("reset"), "broke", False),
        (httpx2.RemoteProtocolError("gone"), "broke", False),
    ],
)
def test_no_answer(
    script: Any, client: Client, raised: Exception, what: str, retryable: bool
) -> None:
    script.answers(raised)
    with pytest.raises(turret_client.ConnectionFailed, match=what) as caught:
        client.models()
    assert caught.value.retryable is retryable
    assert caught.value.status is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "ftp://host"])
def test_a_malformed_url_is_named(url: str) -> None:
    with pytest.raises(turret_client.ConnectionFailed, match="is not the URL of a server"):
        Client(url).models()
