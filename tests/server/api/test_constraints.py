"""Which field asks for which grammar; grammars themselves are tested with the pipeline."""

from __future__ import annotations

import pytest

SCHEMA = {"type": "object"}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
STRICT = {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "method", "arguments", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", [], None),
        (
            {"response_format": FORMAT},
            "json_schema",
            [SCHEMA, False],
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": STRICT},
            "json_schema",
            [SCHEMA, True],
            "response_format.json_schema.schema",
        ),
        ({"guided_json": SCHEMA}, "json_schema", [SCHEMA, False], "guided_json"),
        ({"guided_json": '{"type": "object"}'}, "json_schema", [SCHEMA, False], "guided_json"),
        ({"guided_regex": "a+"}, "regex", ["a+"], "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "choice", [["a", "b"]], "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "grammar", ['start: "a"'], "guided_grammar"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", ["a+"], "structured_outputs.regex"),
        (
            {"structured_outputs": {"json": {}}},
            "json_schema",
            [{}, False],
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json_object": True}}, "json_object", [], None),
    ],
)
async def test_the_grammar_reaches_the_engine(
    client, engine, monkeypatch, fields, method, arguments, param
):
    calls = []

    def compile_(self, *args, **kwargs):
        calls.append((list(args), kwargs.get("param")))
        return "a grammar"

    monkeypatch.setattr(type(client.app.state.service.constraints), method, compile_)
    for answer in (await client.chat(max_tokens=1, **fields), await client.complete(**fields)):
        assert answer.status == 200, answer.body
    assert [request.sampling.grammar for request in engine.requests] == ["a grammar"] * 2
    assert calls == [(arguments, param)] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
    ],
)
async def test_free_text(client, engine, fields):
    assert (await client.chat(max_tokens=1, **fields)).status == 200
    assert engine.requests[0].sampling.grammar is None


async def test_a_real_schema(client, engine):
    answer = await client.chat(max_tokens=1, response_format=FORMAT)
    assert answer.status == 200
    assert "json_schema" in engine.requests[0].sampling.grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": 5}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_grammar": "start: ("}, "guided_grammar"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_what_cannot_be_compiled_is_refused_by_name(client, engine, fields, param):
    answer = await client.chat(**fields)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param
    assert engine.requests == []
