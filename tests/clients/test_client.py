"""Requests and answers, of the synchronous client; the other one only differs in its waiting."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import pytest

from turret_client import Adapter, AsyncClient, Client, Model, Tokens, ToolCall, Usage
from turret_client.adapters import ClientAdapters
from turret_client.async_adapters import AsyncClientAdapters
from turret_client.async_tenants import AsyncClientKeys, AsyncClientTenants
from turret_client.tenants import ClientKeys, ClientTenants
from turret_server.api.schema.responses import AdapterCard


def test_a_string_is_a_question_of_the_user(script: Any, client: Client) -> None:
    client.chat("2 + 2?")
    assert script.bodies() == [{"messages": [{"role": "user", "content": "2 + 2?"}]}]


def test_messages_and_any_parameter_are_passed_on(script: Any, client: Client) -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "2 + 2?"}]
    client.chat(messages, model="sql", temperature=0, top_k=5, x_mine=1)
    assert script.bodies() == [
        {"messages": messages, "model": "sql", "temperature": 0, "top_k": 5, "x_mine": 1}
    ]


@pytest.mark.parametrize(
    ("adapters", "sent"),
    [
        (["sql", "formal"], [{"name": "sql"}, {"name": "formal"}]),
        ({"sql": 0.7}, [{"name": "sql", "weight": 0.7}]),
        ({"sql": {"q_proj": 0.5}}, [{"name": "sql", "weight": {"q_proj": 0.5}}]),
        (
            [{"name": "sql", "weight": 2}, "formal"],
            [{"name": "sql", "weight": 2}, {"name": "formal"}],
        ),
        ([], []),
    ],
)
def test_adapters(script: Any, client: Client, adapters: Any, sent: Any) -> None:
    client.chat("Hi", adapters=adapters)
    assert script.bodies()[0]["adapters"] == sent


def test_a_chat_answer(client: Client) -> None:
    answer = client.chat("2 + 2?")
    assert (answer.id, answer.model, answer.text) == ("chatcmpl-1", "sql", "Four.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage == Usage(9, 3, 12, cached_tokens=8)
    assert answer.raw["created"] == 1


def test_tool_calls(script: Any, client: Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    script.answers({"id": "x", "model": "base", "choices": [choice]})
    answer = client.chat("2 + 2?")
    assert (answer.text, answer.tool_calls) == ("", (ToolCall("c1", "f", "{}"),))


@pytest.mark.parametrize("prompt", ["The sea", [1, 2], ["a", "b"], [[1], [2]]])
def test_completions_of_every_kind_of_prompt(script: Any, client: Client, prompt: Any) -> None:
    choices = [{"index": 0, "text": " is", "finish_reason": "length", "logprobs": {"tokens": []}}]
    script.answers({"id": "cmpl-1", "model": "base", "choices": choices})
    answer = client.complete(prompt, max_tokens=1)
    assert script.requests[0].url.path == "/v1/completions"
    assert script.bodies() == [{"prompt": prompt, "max_tokens": 1}]
    assert (answer.text, answer.choices[0].logprobs, answer.usage) == (" is", {"tokens": []}, None)


def test_models_ignore_fields_of_newer_servers(script: Any, client: Client) -> None:
    card = {"id": "sql", "object": "model", "kind": "lora", "created": 1, "invented_later": 1}
    script.answers({"object": "list", "data": [card]})
    assert client.models() == (Model("sql", "lora", created=1),)


CARD = {"id": "sql", "kind": "lora", "digest": "d", "path": "/a/sql", "targets": ["q_proj"]}


def test_adapters_are_listed_and_described(script: Any, client: Client) -> None:
    adapter = Adapter("sql", "lora", "d", "/a/sql", targets=("q_proj",))
    script.answers({"data": [CARD]}, CARD)
    assert client.adapters.list() == (adapter,)
    assert client.adapters.get("sql") == adapter


def test_adapters_are_loaded_and_unloaded(script: Any, client: Client) -> None:
    script.answers(CARD)
    assert client.adapters.load("sql", "/a/sql").targets == ("q_proj",)
    client.adapters.unload("sql")
    load, unload = script.requests
    assert (load.method, load.url.path) == ("PUT", "/v1/adapters/sql")
    assert json.loads(load.content) == {"path": "/a/sql"}
    assert (unload.method, unload.content) == ("DELETE", b"")


def test_a_load_may_name_its_content_and_be_pinned(script: Any, client: Client) -> None:
    script.answers(CARD)
    client.adapters.load("sql", Path("/a/sql"), digest="sha256:ab", pin=False)
    assert script.bodies() == [{"path": "/a/sql", "digest": "sha256:ab", "pin": False}]


@pytest.mark.parametrize(
    ("sources", "sent"),
    [
        (["sql", "formal"], [{"name": "sql"}, {"name": "formal"}]),
        (
            {"sql": 0.5, "formal": 1},
            [{"name": "sql", "weight": 0.5}, {"name": "formal", "weight": 1}],
        ),
        (
            [{"name": "sql", "weight": 2}, "formal"],
            [{"name": "sql", "weight": 2}, {"name": "formal"}],
        ),
    ],
)
def test_adapters_are_derived(script: Any, client: Client, sources: Any, sent: Any) -> None:
    script.answers(CARD)
    client.adapters.derive("both", "dare_ties", sources, density=0.3, seed=1)
    client.adapters.derive("both", "sum", sources, pin=True)
    assert [(r.method, r.url.path) for r in script.requests] == [("PUT", "/v1/adapters/both")] * 2
    assert script.bodies() == [
        {"derive": {"method": "dare_ties", "sources": sent, "density": 0.3, "seed": 1}},
        {"derive": {"method": "sum", "sources": sent}, "pin": True},
    ]


def test_adapters_are_pinned_and_unpinned(script: Any, client: Client) -> None:
    script.answers(CARD | {"pinned": True}, CARD)
    assert client.adapters.pin("sql").pinned
    assert not client.adapters.unpin("sql").pinned
    assert script.bodies() == [{"pin": True}, {"pin": False}]


def test_a_card_of_the_shelf_has_no_content_yet(script: Any, client: Client) -> None:
    card = {"id": "sql", "kind": None, "digest": None, "targets": None, "tier": "shelf"}
    script.answers(card | {"source": "/shelf/sql", "notes": [], "requests": 0})
    assert client.adapters.get("sql") == Adapter("sql", source="/shelf/sql", tier="shelf")


def test_every_field_of_the_servers_card_is_known() -> None:
    known = {field.name for field in fields(Adapter)}
    assert AdapterCard.model_fields.keys() - known == {"object"}


def test_names_stay_one_segment_of_the_path(script: Any, client: Client) -> None:
    script.answers(CARD)
    client.adapters.get("../models?x")
    assert script.requests[0].url.raw_path == b"/v1/adapters/..%2Fmodels%3Fx"


def test_tokenize_a_text_or_a_conversation(script: Any, client: Client) -> None:
    script.answers({"count": 2, "max_model_len": 8, "tokens": [1, 2], "token_strs": None})
    assert client.tokenize("Hi", add_special_tokens=False) == Tokens((1, 2), 2, 8)
    client.tokenize([{"role": "user", "content": "Hi"}], model="sql")
    text, conversation = script.bodies()
    assert text == {"prompt": "Hi", "model": None, "add_special_tokens": False}
    assert conversation == {"messages": [{"role": "user", "content": "Hi"}], "model": "sql"}


def test_detokenize(script: Any, client: Client) -> None:
    script.answers({"prompt": "Hi"})
    assert client.detokenize((1, 2)) == "Hi"


def test_probes(script: Any, client: Client) -> None:
    script.answers({"status": "ok"})
    assert (client.health(), client.ready()) == (True, True)


@pytest.mark.parametrize(
    "url", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"]
)
def test_the_url_may_be_that_of_an_openai_client(script: Any, url: str) -> None:
    Client(url, transport=httpx2.MockTransport(script)).chat("Hi")
    assert str(script.requests[0].url) == "http://host:1/v1/chat/completions"


def test_a_prefix_of_a_proxy_is_kept(script: Any) -> None:
    Client("http://host/turret/v1", transport=httpx2.MockTransport(script)).chat("Hi")
    assert str(script.requests[0].url) == "http://host/turret/v1/chat/completions"


def test_url_and_key_come_from_the_environment(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURRET_URL", "http://elsewhere")
    monkeypatch.setenv("TURRET_API_KEY", "secret")
    Client(transport=httpx2.MockTransport(script)).chat("Hi")
    (request,) = script.requests
    assert request.url.host == "elsewhere"
    assert request.headers["authorization"] == "Bearer secret"


def test_without_a_key_none_is_sent(script: Any, client: Client) -> None:
    client.chat("Hi")
    assert "authorization" not in script.requests[0].headers
    assert script.requests[0].headers["user-agent"].startswith("turret-client/")


@pytest.mark.parametrize(
    ("sync", "other"),
    [
        (Client, AsyncClient),
        (ClientAdapters, AsyncClientAdapters),
        (ClientTenants, AsyncClientTenants),
        (ClientKeys, AsyncClientKeys),
    ],
)
def test_both_clients_have_the_same_methods(sync: type, other: type) -> None:
    def methods(cls: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            name: [
                (parameter.name, parameter.kind, parameter.default)
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in vars(cls).items()
            if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__")
        }

    assert methods(sync) == methods(other)
    for name in methods(other).keys() - {"__init__"}:
        assert inspect.iscoroutinefunction(getattr(other, name)), name
