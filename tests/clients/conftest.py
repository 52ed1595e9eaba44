"""A scripted server behind httpx2's mock transport."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

import turret_client
from turret_client import AsyncClient, Client

COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "sql",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Four.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 8},
    },
}


class Script:
    """Answers requests in turn, the last answer again and again, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self._answers: list[Any] = [COMPLETION]

    def answers(self, *answers: Any) -> None:
        """JSON for a 200, a function that returns a response, or an exception to raise."""
        self._answers = list(answers)

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else httpx2.Response(200, json=answer)


def _error(status: int, code: str, **headers: str) -> Callable[[], httpx2.Response]:
    error = {
        "message": "What: why. Fix.",
        "type": "some_error",
        "param": "messages[0].content",
        "code": code,
        "what": "What",
        "why": "why",
        "fix": "Fix.",
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx2.Response(status, json={"error": error}, headers=named)


def _events(*data: Any, done: bool = True) -> Callable[[], httpx2.Response]:
    texts = [json.dumps(one) for one in data] + ["[DONE]"] * done
    content = ": ping\n\n" + "".join(f"data: {text}\n\n" for text in texts)
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r1"}
    return lambda: httpx2.Response(200, content=content.encode(), headers=headers)


@pytest.fixture
def error() -> Callable[..., Callable[[], httpx2.Response]]:
    """Makes an error of Turret's: error(429, "overloaded", retry_after="1")."""
    return _error


@pytest.fixture
def events() -> Callable[..., Callable[[], httpx2.Response]]:
    """Makes a stream of events."""
    return _events


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def client(script: Script) -> Client:
    return Client(transport=httpx2.MockTransport(script))


@pytest.fixture
def async_client(script: Script) -> AsyncClient:
    return AsyncClient(transport=httpx2.MockTransport(script))


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; how long they wanted to."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(turret_client.client.time, "sleep", found.append)
    monkeypatch.setattr(turret_client.async_client.asyncio, "sleep", sleep)
    monkeypatch.setattr(turret_client.retries.random, "random", lambda: 0.0)
    for name in ("TURRET_URL", "TURRET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return found
