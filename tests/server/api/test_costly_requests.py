"""Requests made to cost much: what is described once is, and long work is not the event loop's."""

from __future__ import annotations

import threading

import pytest
from pydantic import ValidationError

from turret_server.api import prepare
from turret_server.api.schema.admin import MAX_TOKENIZE_CHARS, DetokenizeBody, PutAdapterBody
from turret_server.api.schema.chat import ChatBody
from turret_server.api.schema.completion import CompletionBody
from turret_server.pipeline.stops import StopStrings
from turret_server.pipeline.tokenizer import Tokenizer

MANY = 10_000
UNKNOWN = {f"x{i}": 0 for i in range(MANY)}
CALLS = {"role": "assistant", "tool_calls": [{}] * 256}
WORDS = "word " * 700  # short enough for the loop, alone


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (DetokenizeBody, {"tokens": ["a"] * MANY}),
        (ChatBody, {"messages": [CALLS] * 100}),
        (ChatBody, {"messages": [], "fusion": {"experts": [{"messages": [{}] * 4000}]}}),
        (CompletionBody, {"prompt": "a", "response_format": UNKNOWN}),
        (CompletionBody, {"prompt": "a", "structured_outputs": UNKNOWN}),
        (PutAdapterBody, {"derive": {"sources": [UNKNOWN]}}),
    ],
    ids=["tokens", "calls", "members", "format", "outputs", "sources"],
)
def test_not_every_problem_is_described(kind, body):
    """A body has room for a million, at a kilobyte and some microseconds each."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 10


async def test_an_unknown_field_among_many_is_named(client):
    answer = await client.complete(response_format={"type": "text", **UNKNOWN})
    assert (answer.status, answer.json["error"]["param"]) == (400, "response_format.x0")


async def test_stop_strings_are_built_once_for_all_answers(client, monkeypatch):
    built = []

    def build(stops):
        built.append(stops)
        return StopStrings(stops)

    monkeypatch.setattr(prepare, "StopStrings", build)
    answer = await client.complete(["a", "b"], n=4, max_tokens=2, stop=["x" * 1000])
    assert (answer.status, len(built)) == (200, 1)


@pytest.fixture
def encoded_in(monkeypatch):
    """The threads that texts were tokenised in, and tokens written out."""
    threads = []

    def noting(method):
        def noted(*args, **kwargs):
            threads.append(threading.current_thread())
            return method(*args, **kwargs)

        return noted

    for name in ("encode", "token_text"):
        monkeypatch.setattr(Tokenizer, name, noting(getattr(Tokenizer, name)))
    return threads


TOOL = {"type": "function", "function": {"name": "f", "description": WORDS * 2}}
ARGUED = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": WORDS * 2}}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [WORDS, WORDS], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}),
        ("/v1/chat/completions", {"messages": [ARGUED]}),
        ("/tokenize", {"messages": [ARGUED]}),
        ("/tokenize", {"prompt": WORDS * 2, "return_token_strs": True}),
        ("/v1/completions", {"prompt": [WORDS], "max_tokens": 1, "echo": True, "logprobs": 20}),
    ],
    ids=["prompts", "tools", "calls", "tokenize calls", "token texts", "echo"],
)
async def test_long_texts_leave_the_event_loop(client, encoded_in, path, body):
    assert (await client.post(path, body)).status == 200
    texts = [t for t in encoded_in if t is threading.main_thread()]
    # A prompt of 700 tokens may be encoded there, and a few tokens of an answer be written out.
    assert encoded_in
    assert len(texts) <= 30


async def test_a_million_characters_are_tokenised_at_once(client):
    long = "a" * (MAX_TOKENIZE_CHARS + 1)
    for body in ({"prompt": long}, {"messages": [{"role": "user", "content": long}]}):
        answer = await client.post("/tokenize", body)
        assert (answer.status, answer.json["error"]["param"]) == (400, next(iter(body)))
