"""Tools through the chat route; parsing and grammars themselves are tested with the pipeline."""

from __future__ import annotations

import json

import pytest

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = call("weather", '{"city": "Zürich"}')


def streamed_calls(events):
    """Calls put together as OpenAI's clients do."""
    calls = {}
    for event in events:
        for delta in event["choices"][0]["delta"].get("tool_calls", ()):
            entry = calls.setdefault(delta["index"], {"name": "", "arguments": ""})
            entry["id"] = delta.get("id", entry.get("id"))
            entry["name"] += delta["function"].get("name", "")
            entry["arguments"] += delta["function"].get("arguments", "")
    return [calls[index] for index in sorted(calls)]


async def test_a_call(client, engine, tokenizer):
    engine.text(CALL)
    (choice,) = (await client.chat("Weather?", tools=[WEATHER])).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    (tool_call,) = message["tool_calls"]
    assert tool_call["type"] == "function"
    assert tool_call["id"].startswith("call_")
    assert tool_call["function"]["name"] == "weather"
    assert json.loads(tool_call["function"]["arguments"]) == {"city": "Zürich"}
    prompt = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert "Weather of a city." in prompt
    assert engine.requests[0].sampling.grammar is None


async def test_a_streamed_call(client, engine, tokenizer):
    engine.text(f"Let me look.\n{CALL}")
    events = (await client.chat(tools=[WEATHER], stream=True)).events
    assert len(events) == len(tokenizer.encode(f"Let me look.\n{CALL}")) + 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    (tool_call,) = streamed_calls(events)
    assert tool_call["name"] == "weather"
    assert json.loads(tool_call["arguments"]) == {"city": "Zürich"}
    content = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
    assert content.strip() == "Let me look."
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_several_calls_and_at_most_one(client, engine):
    engine.text(f"{CALL}\n{call('other', '{}')}")
    for stream in (False, True):
        for parallel, names in ((None, ["weather", "other"]), (False, ["weather"])):
            answer = await client.chat(
                tools=[WEATHER, OTHER], parallel_tool_calls=parallel, stream=stream
            )
            if stream:
                called = [tool_call["name"] for tool_call in streamed_calls(answer.events)]
            else:
                message = answer.json["choices"][0]["message"]
                called = [one["function"]["name"] for one in message["tool_calls"]]
            assert called == names


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_calls_nothing(client, engine, stream):
    engine.text("It is sunny.")
    answer = await client.chat(tools=[WEATHER], stream=stream)
    if stream:
        deltas = [event["choices"][0]["delta"] for event in answer.events]
        assert "".join(delta["content"] for delta in deltas) == "It is sunny."
        assert answer.events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        (choice,) = answer.json["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "refusal": None,
            "content": "It is sunny.",
        }
        assert choice["finish_reason"] == "stop"


async def test_without_tools_calls_are_text(client, engine):
    engine.text(CALL)
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
        (choice,) = (await client.chat(**fields)).json["choices"]
        assert choice["message"]["content"] == CALL
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
    assert len({tuple(request.prompt) for request in engine.requests}) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_forced_call_is_a_grammar(client, engine, choice):
    engine.text(CALL)
    answer = await client.chat(tools=[WEATHER, OTHER], tool_choice=choice)
    assert answer.json["choices"][0]["finish_reason"] == "tool_calls"
    grammar = engine.requests[0].sampling.grammar
    assert "weather" in grammar
    assert ("other" in grammar) == (choice == "required")


async def test_parameters_that_are_no_schema(client, engine):
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}
    answer = await client.chat(tools=[OTHER, bad], tool_choice="required")
    assert answer.status == 400
    assert answer.json["error"]["param"] == "tools[1].function.parameters"
    assert engine.requests == []


async def test_earlier_calls_and_results_are_in_the_prompt(client, engine, tokenizer):
    engine.text("Sunny.")
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
    ]
    answer = await client.post("/v1/chat/completions", {"messages": messages, "tools": [WEATHER]})
    assert answer.status == 200, answer.body
    prompt = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert "Zürich" in prompt
    assert "22 degrees" in prompt


async def test_a_model_whose_calls_nobody_can_read(client, monkeypatch):
    monkeypatch.setattr(type(client.app.state.service.prompt), "tool_parser", None)
    answer = await client.chat(tools=[WEATHER])
    assert (answer.status, answer.json["error"]["param"]) == (422, "tools")
    assert (await client.chat(tools=[WEATHER], tool_choice="none")).status == 200
