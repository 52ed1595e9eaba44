from __future__ import annotations

import msgspec
import pytest

from turret_server.api.schema import responses


@pytest.fixture
def document(app):
    return app.openapi()


def test_every_operation_is_described(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert "4XX" in operation["responses"]
            assert "422" not in operation["responses"]


def test_request_fields_are_described_and_bounded(document):
    schemas = document["components"]["schemas"]
    for name in ("ChatBody", "CompletionBody"):
        for field, schema in schemas[name]["properties"].items():
            described = schema.get("description") or "$ref" in str(schema)
            assert described or field in {"messages", "tools", "structured_outputs"}, field
            for kind in schema.get("anyOf", [schema]):
                if kind.get("type") in ("integer", "number"):
                    lower = {"minimum", "exclusiveMinimum"} & set(kind)
                    upper = {"maximum", "exclusiveMaximum"} & set(kind)
                    assert lower, field
                    assert upper, field


SHARED = """
    model adapters stream stream_options n max_tokens min_tokens temperature top_p top_k min_p
    presence_penalty frequency_penalty repetition_penalty logit_bias seed stop stop_token_ids
    ignore_eos skip_special_tokens include_stop_str_in_output prompt_logprobs cache_salt timeout_s
    response_format structured_outputs guided_json guided_regex guided_choice guided_grammar
    logprobs
"""
CHAT = """
    messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls
    add_generation_prompt continue_final_message chat_template_kwargs layout
"""
COMPLETION = "prompt best_of echo add_special_tokens"


@pytest.mark.parametrize(
    ("name", "fields", "required"),
    [
        ("ChatBody", SHARED + CHAT, ["messages"]),
        ("CompletionBody", SHARED + COMPLETION, ["prompt"]),
    ],
)
def test_the_fields_of_the_contract_are_there(document, name, fields, required):
    schema = document["components"]["schemas"][name]
    assert set(fields.split()) <= set(schema["properties"])
    assert schema["required"] == required


async def test_answers_are_what_the_document_says(client, engine):
    """Responses are encoded by hand for speed; here they meet their documented models."""
    engine.text("Hello there.")
    checks = [
        (responses.ChatCompletion, await client.chat(n=2, logprobs=True, top_logprobs=2)),
        (responses.ChatCompletion, await client.chat(prompt_logprobs=1)),
        (responses.Completion, await client.complete(logprobs=2, echo=True, best_of=2)),
        (responses.Completion, await client.complete(prompt_logprobs=0)),
        (responses.ErrorBody, await client.chat(n=0)),
        (responses.ModelList, await client.get("/v1/models")),
    ]
    for model, answer in checks:
        parsed = model.model_validate_json(answer.body, strict=True, extra="forbid")
        assert msgspec.json.decode(parsed.model_dump_json(exclude_unset=True)) == answer.json


async def test_the_pages(client, make_client):
    assert (await client.get("/openapi.json")).json["info"]["title"] == "Turret"
    assert (await client.get("/docs")).status == 200
    assert (await make_client(enable_docs=False).get("/docs")).status == 404
