"""Streams of the synchronous client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import turret_client
from turret_client import (
    Client,
    ConnectionFailed,
    Finished,
    InvalidAnswer,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageReport,
)

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


def chunk(choice: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if choice is None else [{"index": 0, "logprobs": None, **choice}]
    return {"id": "chatcmpl-1", "model": "sql", "choices": choices, **more}


def said(text: str, **more: Any) -> dict[str, Any]:
    return chunk({"delta": {"content": text}, "finish_reason": None, **more})


def test_events_of_a_chat(script: Any, client: Client, events: Any) -> None:
    script.answers(
        events(
            chunk({"delta": {"role": "assistant", "content": ""}}),
            said("Fo", logprobs={"content": [1]}),
            said("ur"),
            chunk({"delta": {"content": ""}, "finish_reason": "stop", "stop_reason": "\n"}),
            chunk(usage=USAGE),
        )
    )
    with client.chat("2 + 2?", stream=True) as stream:
        assert list(stream) == [
            TextDelta(0, "Fo", {"content": [1]}),
            TextDelta(0, "ur"),
            Finished(0, "stop", "\n"),
            UsageReport(Usage(9, 3, 12)),
        ]
        assert stream.request_id == "r1"
    (body,) = script.bodies()
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_stream_options_can_be_chosen(script: Any, client: Client, events: Any) -> None:
    script.answers(events())
    client.chat("Hi", stream=True, stream_options={"continuous_usage_stats": True}).close()
    assert script.bodies()[0]["stream_options"] == {"continuous_usage_stats": True}


def test_the_whole_answer(script: Any, client: Client, events: Any) -> None:
    script.answers(
        events(
            said("Fo", logprobs={"content": [1]}),
            {"id": "i", "model": "m", "choices": [{"index": 1, "delta": {"content": "4"}}]},
            said("ur", logprobs={"content": [2]}, finish_reason="stop"),
            chunk(usage=USAGE),
        )
    )
    stream = client.chat("2 + 2?", stream=True, n=2)
    assert next(iter(stream)) == TextDelta(0, "Fo", {"content": [1]})
    answer = stream.answer()
    assert (answer.id, answer.model, answer.usage) == ("chatcmpl-1", "sql", Usage(9, 3, 12))
    assert [choice.text for choice in answer.choices] == ["Four", "4"]
    assert answer.choices[0].logprobs == {"content": [1, 2]}
    assert answer.choices[0].finish_reason == "stop"


def test_texts_are_those_of_the_first_choice(script: Any, client: Client, events: Any) -> None:
    other = {"id": "i", "model": "m", "choices": [{"index": 1, "text": "x"}]}
    script.answers(events(chunk({"text": "a"}), other, chunk({"text": "b"})))
    assert list(client.complete("a", stream=True).texts()) == ["a", "b"]


def test_tool_calls_are_put_together(script: Any, client: Client, events: Any) -> None:
    def call(index: int, arguments: str | None, **more: Any) -> dict[str, Any]:
        name = more.pop("name", None)
        function = {"arguments": arguments} | ({"name": name} if name else {})
        return chunk({"delta": {"tool_calls": [{"index": index, "function": function, **more}]}})

    script.answers(
        events(
            call(0, None, id="c0", name="add"),
            call(0, '{"a":'),
            call(0, "1}"),
            call(1, "{}", id="c1", name="stop"),
        )
    )
    stream = client.chat("2 + 2?", stream=True)
    assert list(stream)[:2] == [
        ToolCallDelta(0, 0, "", "c0", "add"),
        ToolCallDelta(0, 0, '{"a":'),
    ]
    assert stream.answer().tool_calls == (
        ToolCall("c0", "add", '{"a":1}'),
        ToolCall("c1", "stop", "{}"),
    )


def test_an_error_on_the_way(script: Any, client: Client, events: Any) -> None:
    error = {"error": {"what": "It died", "message": "It died.", "code": "engine_unavailable"}}
    script.answers(events(said("Fo"), error))
    stream = client.chat("2 + 2?", stream=True)
    assert next(iter(stream)) == TextDelta(0, "Fo")
    with pytest.raises(turret_client.EngineUnavailable, match="It died"):
        next(iter(stream))


def test_a_stream_without_its_end_is_not_taken_for_complete(
    script: Any, client: Client, events: Any
) -> None:
    script.answers(events(said("Fo", finish_reason="stop"), done=False))
    with pytest.raises(ConnectionFailed, match="cut off"):
        list(client.chat("2 + 2?", stream=True))


def test_a_broken_connection(script: Any, client: Client) -> None:
    def content() -> Iterator[bytes]:
        yield b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'
        raise httpx2.ReadError("reset")

    headers = {"content-type": "text/event-stream"}
    script.answers(lambda: httpx2.Response(200, content=content(), headers=headers))
    stream = client.complete("a", stream=True)
    assert next(iter(stream)) == TextDelta(0, "a")
    with pytest.raises(ConnectionFailed, match="reset"):
        next(iter(stream))


def test_leaving_early_closes_the_connection(script: Any, client: Client, events: Any) -> None:
    script.answers(events(said("Fo"), said("ur")))
    with client.chat("2 + 2?", stream=True) as stream:
        for _ in stream:
            break
    assert stream._response.is_closed
    with pytest.raises(ConnectionFailed, match="cut off"):
        stream.answer()


@pytest.mark.parametrize("data", ["{", "3", "{}", '{"choices": 3}', '{"choices": [{}]}'])
def test_a_malformed_chunk(script: Any, client: Client, data: str) -> None:
    headers = {"content-type": "text/event-stream"}
    script.answers(lambda: httpx2.Response(200, text=f"data: {data}\n\n", headers=headers))
    with pytest.raises(InvalidAnswer):
        list(client.chat("2 + 2?", stream=True))


def test_what_is_no_stream_is_refused(script: Any, client: Client) -> None:
    script.answers(lambda: httpx2.Response(200, html="<h1>Welcome</h1>"))
    with pytest.raises(InvalidAnswer):
        list(client.chat("2 + 2?", stream=True))
