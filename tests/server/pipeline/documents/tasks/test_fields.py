"""Keys and schemas of a key-value extraction, and the JSON that comes back."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.tasks import (
    TASKS,
    Answer,
    fields_question,
    fields_schema,
    parse,
)


def test_keys_become_a_schema_of_texts_or_null() -> None:
    schema = fields_schema(["total", "due date"])
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid({"total": "5.00", "due date": None})
    assert not valid({"total": "5.00"})
    assert not valid({"total": 5, "due date": None})
    assert not valid({"total": "5.00", "due date": None, "more": ""})
    assert fields_question(schema) == "What are the values of these keys?\n- total\n- due date"


def test_a_schema_is_kept_and_its_descriptions_are_asked_for() -> None:
    lines = {"type": "array", "items": {"type": "string"}}
    schema = {
        "type": "object",
        "properties": {
            "total": {"type": "number", "description": "with tax"},
            "lines": lines,
            "any": True,
        },
    }
    assert fields_schema(schema) == schema
    assert fields_question(schema) == (
        "What are the values of these keys?\n- total: with tax\n"
        '- lines: {"type": "array", "items": {"type": "string"}}\n- any'
    )


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"items": inner}
    return {"type": "object", "properties": {"a": inner}}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([], "none"),
        (["a", "a"], "twice"),
        (["a", " "], "empty"),
        (["a", 3], "no text"),
        (["a" * 257], "257 characters"),
        ([str(n) for n in range(257)], "257; 256"),
        ("total", "neither a list"),
        (None, "neither a list"),
        ({"type": "array"}, "object with properties"),
        ({"type": "object", "properties": {}}, "none"),
        ({"type": "object", "properties": ["a"]}, "object with properties"),
        ({"type": "object", "properties": {"a": {"description": 3}}}, "description of 'a'"),
        (nested(100_000), "nested too deeply"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(fields: Any, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        fields_question(fields_schema(fields))


@pytest.mark.parametrize(
    ("raw", "text", "value"),
    [
        ('{"a": "1"}', '{"a": "1"}', {"a": "1"}),
        ('```json\n{"a": null}\n```', '{"a": null}', {"a": None}),
        ('```\n{"a": null}', '{"a": null}', {"a": None}),
        ('Here: {"a": {"b": [1]}} as asked.', '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ('The {keys}: {"a": "}"}', '{"a": "}"}', {"a": "}"}),
        ('Answer: {"a": "ü"}', '{"a": "ü"}', {"a": "ü"}),
        ('{"a": NaN}', '{"a": NaN}', None),
        ('{"a": "cut', '{"a": "cut', None),
        ("none", "none", None),
    ],
)
def test_the_object_is_found_in_the_reply(raw: str, text: str, value: Any) -> None:
    assert parse(TASKS["key-values"], raw) == Answer(text, value)


@pytest.mark.parametrize("raw", ['{"a":' * 100_000, "{" * 100_000, '{"a": 1' + "0" * 10_000 + "}"])
def test_hostile_json_stays_text(raw: str) -> None:
    assert parse(TASKS["key-values"], raw) == Answer(raw)
