"""Answers of a given form: JSON schemas and tools, with a model that would never keep to them."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import pytest

pytestmark = pytest.mark.e2e

SCHEMAS = {
    "order": {
        "type": "object",
        "properties": {
            "item": {"enum": ["tea", "coffee", "cake"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 20},
            "paid": {"type": "boolean"},
        },
        "required": ["item", "count", "paid"],
        "additionalProperties": False,
    },
    "list": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-z]{2,5}$"},
        "minItems": 2,
        "maxItems": 3,
    },
    "nested": {
        "type": "object",
        "properties": {
            "place": {"$ref": "#/$defs/place"},
            "when": {"type": "string", "format": "date"},
        },
        "required": ["place", "when"],
        "additionalProperties": False,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "minimum": 0, "maximum": 999},
                    "y": {"type": ["integer", "null"], "minimum": 0, "maximum": 999},
                },
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


async def test_answers_follow_their_schemas(ask, base):
    """Different schemas and adapters in one batch, drawn at temperature 1."""
    jobs = [(model, name, i) for model in (base, "r8", "r32") for i, name in enumerate(SCHEMAS)]

    async def one(model, name, seed):
        schema = {"name": name, "schema": SCHEMAS[name], "strict": True}
        answer = await ask(
            model,
            "Answer in JSON: two teas for the table at the window.",
            response_format={"type": "json_schema", "json_schema": schema},
            temperature=1.0,
            seed=seed,
            max_tokens=300,
        )
        return answer.choices[0]

    choices = await asyncio.gather(*(one(*job) for job in jobs))
    for (_, name, _), choice in zip(jobs, choices, strict=True):
        assert choice.finish_reason == "stop", choice.message.content
        jsonschema.validate(json.loads(choice.message.content), SCHEMAS[name])


def _check(calls):
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.id
        arguments = json.loads(call.function.arguments)
        if call.function.name == "get_weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
        else:
            assert (call.function.name, arguments) == ("get_time", {})


@pytest.mark.parametrize("model", ["base", "r16-rslora"])
async def test_a_required_tool_is_called(ask, base, model):
    answer = await ask(
        base if model == "base" else model,
        "How is the weather in Rome?",
        tools=[WEATHER, CLOCK],
        tool_choice="required",
        parallel_tool_calls=False,  # this model would go on calling
        max_tokens=120,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    _check(answer.choices[0].message.tool_calls)


async def test_a_named_tool_is_called_in_a_stream_as_in_one_piece(ask, base):
    options = {
        "tools": [WEATHER, CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 120,
    }
    whole = (await ask(base, "Weather?", **options)).choices[0]
    (call,) = whole.message.tool_calls
    _check([call])
    assert call.function.name == "get_weather"

    name, arguments, finish = "", "", None
    async for chunk in await ask(base, "Weather?", stream=True, **options):
        finish = chunk.choices[0].finish_reason or finish
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.index == 0
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert finish == whole.finish_reason
