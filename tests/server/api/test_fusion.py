"""Fusion in bodies and in recipes: what the engine is told, and what is refused before it is."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from turret_server.api.schema.fusion import parse_fusion
from turret_server.engine.messages import AdapterUse, TokenLogprob

SYSTEM = {"role": "system", "content": "Answer in French."}
USER = {"role": "user", "content": "Hi"}


@pytest.fixture
async def loaded(client):
    for name in ("sql", "json"):
        body = {"lora_name": name, "lora_path": name}
        assert (await client.post("/v1/load_lora_adapter", body)).status == 200
    return client


def use(name: str, weight: float = 1.0) -> AdapterUse:
    content = f'{{"name": "{name}"}}'.encode()
    return AdapterUse(hashlib.sha256(content).hexdigest(), weight)


def fusion(**fields: Any) -> dict[str, Any]:
    return {"method": "proxy", "experts": ["sql"], "anchor": "demo", **fields}


async def told(client, engine, **fields: Any):
    answer = await client.complete([1, 2, 3], max_tokens=2, **fields)
    assert answer.status == 200, answer.body
    return engine.requests[-1].fusion


METHODS = [
    (fusion(), [0, 0, 1], [1, -1, 1]),
    (fusion(weights=0.5), [0, 0, 1], [1, -0.5, 0.5]),
    (fusion(method="ensemble", weights=2, anchor="json"), [0, 1, 2], [1, -2, 2]),
    (fusion(experts=["sql", "json"], weights=[1, 0.25]), [0, 0, 1, 2], [1, -1.25, 1, 0.25]),
    ({"method": "dexperts", "experts": ["sql"], "anchor": "json"}, [0, 1, 2], [1, -2, 2]),
    ({"method": "dexperts", "experts": ["sql"], "weights": 0.5}, [0, 1], [0.5, 0.5]),
    ({"method": "dexperts", "anchor": "sql"}, [0, 1], [3, -2]),
    ({"method": "contrastive", "anchor": "sql"}, [0, 1], [1, -1]),
    ({"method": "guidance", "negative_prompt": [7]}, [0, 1], [1.5, -0.5]),
    ({"method": "guidance", "anchor": {"prompt": [7]}, "weights": 3}, [0, 1], [3, -2]),
    (fusion(method="dynamic", anchor="json"), [0, 1, 2], [0, 0, 0]),
    ({"method": "sum", "experts": ["sql"], "weights": [0.5, -2]}, [0, 1], [0.5, -2]),
    ({"method": "product", "experts": ["sql"]}, [0, 1], [0.5, 0.5]),
    ({"method": "mixture", "experts": ["sql", "json", "demo"]}, [0, 1, 2, 0], [0.25] * 4),
    ({"method": "mixture", "experts": ["sql", "json"], "weights": [1, 0, 3]}, [0, 1], [1, 3]),
]


@pytest.mark.parametrize(("body", "terms", "weights"), METHODS, ids=str)
async def test_methods_are_terms_with_weights(loaded, engine, body, terms, weights):
    """Equal members are one; what has no weight is none."""
    found = await told(loaded, engine, fusion=body)
    assert (list(found.terms), list(found.weights)) == (terms, weights)
    assert len(found.members) == max(terms)


async def test_defaults_and_options(loaded, engine):
    found = await told(loaded, engine, fusion={"method": "contrastive", "anchor": "sql"})
    assert (found.plausible, found.nucleus, found.limit) == (0.1, 1.0, 0.0)
    found = await told(loaded, engine, fusion={"method": "dexperts", "anchor": "sql"})
    assert (found.plausible, found.nucleus) == (0.0, 0.9)
    found = await told(loaded, engine, fusion=fusion(plausible=0.25, nucleus=0.5, temperature=2))
    assert (found.plausible, found.nucleus) == (0.25, 0.5)
    assert found.temperatures == (2.0, 1.0, 1.0)
    found = await told(loaded, engine, fusion=fusion(method="dynamic"))
    assert (found.limit, found.grid, found.joint, found.trace) == (2.0, False, False, False)
    found = await told(
        loaded,
        engine,
        fusion=fusion(method="dynamic", range=1, search="grid", trace=True),
        logprobs=1,
    )
    assert (found.limit, found.grid, found.trace) == (1.0, True, True)
    found = await told(
        loaded,
        engine,
        fusion={"method": "mixture", "experts": [{"model": "sql", "temperature": 0.5}]},
    )
    assert (found.mixture, found.temperatures) == (True, (1.0, 0.5))


async def test_members_are_models_of_their_own(loaded, engine):
    """A name, a stack, adapters over the base, the request's own with another prompt."""
    experts = [
        "sql:0.5+json",
        {"model": "sql", "adapters": [{"name": "json", "weight": 2}]},
        {"adapters": [{"name": "json"}], "prompt": [9]},
        {"prompt": [8, 8]},
        "demo",
    ]
    body = {"method": "product", "experts": experts}
    found = await told(loaded, engine, model="sql", fusion=body)
    assert engine.requests[-1].adapters == (use("sql"),)
    assert [(set(m.adapters), m.prompt) for m in found.members] == [
        ({use("sql", 0.5), use("json")}, [1, 2, 3]),
        ({use("sql"), use("json", 2.0)}, [1, 2, 3]),
        ({use("json")}, [9]),
        ({use("sql")}, [8, 8]),
        (set(), [1, 2, 3]),
    ]


async def test_every_prompt_and_choice_is_fused(loaded, engine):
    answer = await loaded.complete([[1], [2, 3]], n=2, max_tokens=1, fusion=fusion())
    assert len(answer.json["choices"]) == 4
    assert [r.fusion.members[0].prompt for r in engine.requests] == [[1], [1], [2, 3], [2, 3]]


async def test_prompts_of_chat_members(loaded, engine, tokenizer):
    async def prompts(member):
        body = {
            "messages": [SYSTEM, USER],
            "fusion": {"method": "guidance", "anchor": member},
            "max_tokens": 1,
        }
        answer = await loaded.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.body
        request = engine.requests[-1]
        both = (request.prompt, request.fusion.members[0].prompt)
        return [tokenizer.decode(ids, skip_special_tokens=False) for ids in both]

    own, other = await prompts({"system": "Answer in Latin."})
    assert other == own.replace("French", "Latin")
    own, other = await prompts({"system": ""})
    assert "French" in own
    assert "Answer" not in other
    own, other = await prompts({"messages": [SYSTEM, {"role": "user", "content": "Bye"}]})
    assert other == own.replace("Hi", "Bye")
    own, other = await prompts({"prompt": "Bye"})
    assert "Bye" in other
    assert "French" not in other
    own, other = await prompts("sql")
    assert other == own


async def test_a_negative_prompt_is_an_anchor(loaded, engine):
    body = {"method": "guidance", "negative_prompt": "Bad"}
    answer = await loaded.chat("Good", fusion=body, max_tokens=1)
    assert answer.status == 200
    assert len(engine.requests[-1].fusion.members) == 1


WRONG = [
    ({"method": "proxy", "experts": ["sql"]}, 400, "fusion.anchor"),
    ({"method": "dynamic", "experts": ["sql"]}, 400, "fusion.anchor"),
    ({"method": "contrastive"}, 400, "fusion.anchor"),
    ({"method": "guidance"}, 400, "fusion.anchor"),
    ({"method": "proxy", "anchor": "demo"}, 400, "fusion.experts"),
    ({"method": "dexperts"}, 400, "fusion.experts"),
    ({"method": "dexperts", "experts": ["sql", "json"]}, 400, "fusion.experts"),
    ({"method": "contrastive", "anchor": "sql", "experts": ["json"]}, 400, "fusion.experts"),
    ({"method": "sum", "experts": ["sql"]}, 400, "fusion.weights"),
    ({"method": "sum", "experts": ["sql"], "weights": 1}, 400, "fusion.weights"),
    ({"method": "sum", "experts": ["sql"], "anchor": "json", "weights": 1}, 400, "fusion.anchor"),
    (fusion(weights=[1, 2]), 400, "fusion.weights"),
    (fusion(weights=16.5), 400, "fusion.weights"),
    (fusion(weights=10**400), 400, "fusion.weights"),
    (fusion(weights=True), 400, "fusion.weights"),
    ({"method": "mixture", "experts": ["sql"], "weights": [1, -1]}, 400, "fusion.weights"),
    ({"method": "mixture", "experts": ["sql"], "weights": [0, 0]}, 400, "fusion.weights"),
    (fusion(method="dynamic", weights=1), 400, "fusion.weights"),
    (fusion(range=1), 400, "fusion.range"),
    (fusion(search="grid"), 400, "fusion.search"),
    (fusion(joint=True), 400, "fusion.joint"),
    (fusion(method="dynamic", joint=True, search="grid"), 400, "fusion.joint"),
    (fusion(experts=["nope"]), 404, "fusion.experts[0].model"),
    (fusion(anchor="nope"), 404, "fusion.anchor.model"),
    (fusion(experts=["sql", {"adapters": [{"name": "n"}]}]), 404, "fusion.experts[1].adapters[0]"),
    (fusion(experts=["sql:99"]), 400, "fusion.experts[0].model"),
    (fusion(experts=["sql"] * 7), 400, "fusion"),
    (fusion(trace=True), 400, "fusion.trace"),
    (fusion(negative_prompt="x"), 400, "fusion.negative_prompt"),
    ({"method": "guidance", "negative_prompt": [1] * 2047}, 400, "fusion.anchor"),
    ({"method": "guidance", "negative_prompt": [1] * 2045}, 400, "fusion.anchor"),
    ({"method": "guidance", "negative_prompt": [10**6]}, 400, "fusion.anchor.prompt"),
    ({"method": "guidance", "negative_prompt": "x" * 500_000}, 400, "fusion.anchor.prompt"),
    ({"method": "guidance", "anchor": {"messages": [USER]}}, 400, "fusion.anchor.messages"),
    ({"method": "guidance", "anchor": {"system": ""}}, 400, "fusion.anchor.system"),
]


@pytest.mark.parametrize(("body", "status", "param"), WRONG, ids=str)
async def test_what_is_wrong_is_named(loaded, engine, body, status, param):
    answer = await loaded.complete([1, 2, 3], max_tokens=8, fusion=body)
    assert answer.status == status, answer.body
    assert answer.json["error"]["param"] == param, answer.json
    assert engine.requests == []


async def test_a_field_that_is_none_of_its_object_is_said_to_be(loaded):
    answer = await loaded.complete([1, 2, 3], fusion={"method": "sum", "members": ["sql"]})
    error = answer.json["error"]
    assert (answer.status, error["param"]) == (400, "fusion.members")
    assert "'fusion.members' is not known: its object has no such field" in error["message"]
    assert "/docs" in error["message"]


WRONG_CHATS = [
    ({"prompt": [1, 2]}, "fusion.anchor.prompt"),
    ({"prompt": "x", "system": "y"}, "fusion.anchor"),
    ({"messages": []}, "fusion.anchor.messages"),
    ({"messages": [{"role": "king"}]}, "fusion.anchor.messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "fusion.anchor.messages[0].content"),
    ({"messages": [{"role": "user", "content": "x " * 300_000}]}, "fusion.anchor"),
    ({"messages": [{"role": "user", "content": "x " * 4000}]}, "fusion.anchor"),
]


@pytest.mark.parametrize(("anchor", "param"), WRONG_CHATS, ids=lambda v: str(v)[:40])
async def test_what_is_wrong_in_a_chat_is_named(loaded, engine, anchor, param):
    answer = await loaded.chat("Hi", fusion={"method": "guidance", "anchor": anchor})
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param, answer.json
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [[1]] * 2, "n": 128}, "n"),
        ({"prompt": [[1]] * 400}, "n"),
    ],
    ids=str,
)
async def test_what_a_fused_request_cannot_have(loaded, engine, fields, param):
    body = {"prompt": [1], "max_tokens": 2, "fusion": fusion(experts=["sql", "json"] * 3), **fields}
    answer = await loaded.post("/v1/completions", body)
    assert answer.status in (400, 422)
    assert answer.json["error"]["param"] == param


async def test_all_members_fit_the_cache_together(loaded, engine):
    engine.set_ready(kv_blocks=16)  # of 16 tokens
    body = {"method": "guidance", "negative_prompt": [7] * 100}
    answer = await loaded.complete([1] * 100, max_tokens=50, fusion=body)
    assert answer.json["error"]["param"] == "fusion"
    assert (await loaded.complete([1] * 100, max_tokens=8, fusion=body)).status == 200
    engine.script = lambda request: [7]
    assert (await loaded.chat("Hi", fusion=fusion())).status == 200
    # What a chat may have by default is what is left: two members, a block each to spare.
    request = engine.requests[-1]
    assert request.sampling.max_tokens == (14 * 16 - 2 * len(request.prompt)) // 2


async def test_a_fused_recipe_is_a_model(make_client, engine):
    table = fusion(weights=1.5)
    client = make_client(recipes={"strong": ()}, fusions={"strong": parse_fusion(table)})
    assert "strong" not in [c["id"] for c in (await client.get("/v1/models")).json["data"]]
    assert (await client.complete([1], model="strong", max_tokens=1)).status == 404
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    cards = {card["id"]: card for card in (await client.get("/v1/models")).json["data"]}
    assert (cards["strong"]["kind"], cards["strong"]["root"]) == (
        "fusion",
        "proxy(sql, anchor=demo)",
    )
    assert cards["strong"]["digest"] != cards["demo"]["digest"]
    answer = await client.complete([1], model="strong", max_tokens=1)
    assert answer.json["model"] == "strong"
    assert engine.requests[-1].fusion.weights == (1.0, -1.5, 1.5)
    # It is no member of another, and takes no second fusion.
    for body in (
        {"model": "strong", "fusion": table},
        {"fusion": {"method": "product", "experts": ["strong"]}},
    ):
        answer = await client.complete([1], max_tokens=1, **body)
        assert answer.status == 422
        assert "a fusion itself" in answer.json["error"]["why"]


async def test_adapters_of_members_stay_until_the_answer_is_there(loaded, engine):
    import asyncio

    engine.gate = asyncio.Event()
    asked = asyncio.create_task(loaded.complete([1], max_tokens=1, fusion=fusion()))
    while not engine.requests:
        await asyncio.sleep(0)
    await loaded.post("/v1/unload_lora_adapter", {"lora_name": "sql"})
    assert use("sql").digest in engine.loaded
    engine.gate.set()
    assert (await asked).status == 200
    await asyncio.sleep(0.01)
    assert use("sql").digest not in engine.loaded


async def test_traces_stand_beside_log_probabilities(loaded, engine, monkeypatch):
    entry = TokenLogprob(7, -0.5, 1, [(7, -0.5)], [1.0, -0.25, 0.25])
    monkeypatch.setattr(engine.model, "entry", lambda *args: entry)
    body = fusion(method="dynamic", trace=True)
    answer = await loaded.complete([1], max_tokens=2, logprobs=1, fusion=body)
    assert answer.json["choices"][0]["logprobs"]["fusion_weights"] == [[1.0, -0.25, 0.25]] * 2
    answer = await loaded.complete([1], max_tokens=2, logprobs=1, fusion=body, stream=True)
    weights = [event["choices"][0]["logprobs"]["fusion_weights"] for event in answer.events]
    assert weights == [[[1.0, -0.25, 0.25]]] * 2
    for stream in (False, True):
        answer = await loaded.chat(max_tokens=1, logprobs=True, fusion=body, stream=stream)
        answer = answer.events[0] if stream else answer.json
        (content,) = answer["choices"][0]["logprobs"]["content"]
        assert content["fusion_weights"] == [1.0, -0.25, 0.25]
