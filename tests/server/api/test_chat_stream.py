from __future__ import annotations

import asyncio

import pytest

from turret_server.errors import EngineUnavailable


def text_of(events, index=0):
    chosen = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content") or "" for c in chosen)


async def test_framing_and_headers(client, engine):
    engine.text("Hello there.")
    answer = await client.chat(stream=True)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert b"\r" not in answer.body
    assert answer.body.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_one_event_per_token_the_role_with_the_first(client, engine):
    engine.text("Hello there.")
    events = (await client.chat(stream=True)).events
    assert [e["choices"][0]["delta"] for e in events] == [
        {"role": "assistant", "content": "Hello"},
        {"content": " there"},
        {"content": "."},
        {"content": ""},
    ]
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "stop"]
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert len({(e["id"], e["created"], e["model"], e["system_fingerprint"]) for e in events}) == 1
    assert all("usage" not in e for e in events)


async def test_usage_comes_last_without_choices(client, engine):
    engine.text("Hello there.")
    events = (await client.chat(stream=True, stream_options={"include_usage": True})).events
    *chunks, last = events
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["prompt_tokens"] == len(engine.requests[0].prompt)
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_usage_so_far(client, engine):
    engine.text("Hello there.")
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await client.chat(stream=True, stream_options=options)).events
    assert [e["usage"]["completion_tokens"] for e in events] == [1, 2, 3, 4, 4]


async def test_the_stream_says_what_the_plain_answer_says(client, engine):
    for text in ("Grüße, 日本語, 🦊👩‍👩‍👧!", 'a\nb\t"quoted" \\ </s>', "x" * 300):
        engine.text(text)
        plain = (await client.chat()).json["choices"][0]["message"]["content"]
        events = (await client.chat(stream=True)).events
        assert text_of(events) == plain == text


async def test_characters_are_never_broken(client, engine, tokenizer):
    engine.text("🦊🦊")
    answer = await client.chat(stream=True)
    assert len(answer.events) == len(tokenizer.encode("🦊🦊")) + 1
    assert "�" not in answer.body.decode()
    assert text_of(answer.events) == "🦊🦊"


async def test_an_unfinished_character_at_the_end(client, engine, tokenizer):
    ids = tokenizer.encode("🦊")
    engine.script = lambda request: ids[:-1]
    assert text_of((await client.chat(stream=True)).events) == "�"


async def test_nothing_of_a_stop_string_is_sent(client, engine):
    engine.text("alpha beta gamma delta")
    answer = await client.chat(stream=True, stop=["ta ga"])
    assert text_of(answer.events) == "alpha be"
    last = answer.events[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "ta ga")
    assert engine.cancelled == [engine.requests[0].id]


async def test_text_held_back_for_a_stop_string_is_sent_in_the_end(client, engine):
    engine.text("alpha beta")
    assert text_of((await client.chat(stream=True, stop=["beta!"])).events) == "alpha beta"


async def test_n_answers_interleave_as_they_arrive(client, engine, tokenizer):
    texts = ["zero nought nil", "one ace", "two pair couple brace"]
    engine.script = lambda request: tokenizer.encode(texts[request.sampling.seed])
    events = (await client.chat(stream=True, n=3, seed=0)).events
    assert [text_of(events, i) for i in range(3)] == texts
    order = [e["choices"][0]["index"] for e in events]
    assert order[:3] != [0, 0, 0]
    roles = [e["choices"][0]["index"] for e in events if "role" in e["choices"][0]["delta"]]
    assert sorted(roles) == [0, 1, 2]
    finished = [e["choices"][0]["index"] for e in events if e["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]


async def test_logprobs_stream_with_their_tokens(client, engine):
    engine.text("Hello there.")
    plain = (await client.chat(logprobs=True, top_logprobs=2)).json
    events = (await client.chat(stream=True, logprobs=True, top_logprobs=2)).events
    entries = [entry for e in events for entry in e["choices"][0]["logprobs"]["content"]]
    assert entries == plain["choices"][0]["logprobs"]["content"]


async def test_a_failure_before_the_first_token_is_a_status(client, engine):
    engine.fail_after, engine.failure = 0, EngineUnavailable("the engine died", "killed", "Retry.")
    answer = await client.chat(stream=True)
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "2000"


async def test_a_failure_in_the_middle_is_an_event(client, engine):
    engine.text("one two three four")
    engine.fail_after, engine.failure = 2, EngineUnavailable("the engine died", "killed", "Retry.")
    answer = await client.chat(stream=True)
    *chunks, error = answer.events
    assert text_of(chunks) == "one two"
    assert error["error"]["type"] == "service_unavailable"
    assert error["error"]["code"] == "engine_unavailable"
    assert error["error"]["what"] == "the engine died"
    assert error["error"]["fix"] == "Retry."


async def test_an_unexpected_failure_tells_nothing_of_its_cause(client, engine, caplog):
    engine.text("one two three four")
    engine.fail_after, engine.failure = 2, ZeroDivisionError("secret")
    answer = await client.chat(stream=True)
    assert answer.events[-1]["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] in answer.events[-1]["error"]["message"]
    assert b"secret" not in answer.body
    assert "unhandled_exception" in caplog.text


async def test_one_failing_choice_ends_all(client, engine, tokenizer):
    engine.text("one two three four")
    engine.delay_s = 0.001
    engine.fail_after, engine.failure = 2, EngineUnavailable("the engine died")
    answer = await client.chat(stream=True, n=4)
    assert "error" in answer.events[-1]
    assert sum("error" in event for event in answer.events) == 1
    assert len(engine.cancelled) == 4


async def test_a_silent_stream_is_kept_open(make_client, engine):
    client = make_client(ping_s=0.05)
    engine.text("one two")
    engine.gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.18, engine.gate.set)
    answer = await client.chat(stream=True)
    assert answer.body.startswith(b": ping\n\n")
    assert 2 <= answer.body.count(b": ping\n\n") <= 4
    assert text_of(answer.events) == "one two"


async def test_a_failure_after_a_ping_is_an_event(make_client, engine):
    client = make_client(ping_s=0.03)
    engine.gate = asyncio.Event()
    engine.fail_after, engine.failure = 0, EngineUnavailable("the engine died")
    asyncio.get_running_loop().call_later(0.06, engine.gate.set)
    answer = await client.chat(stream=True)
    assert answer.status == 200
    assert answer.events[-1]["error"]["what"] == "the engine died"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_stops_sending_is_an_error(client, engine, stream):
    async def nothing(request):
        return
        yield

    engine.generate = nothing
    answer = await client.chat(stream=stream)
    assert answer.status == 503
