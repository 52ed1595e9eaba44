"""Auxiliary models as members of fusions: their templates, adapters and limits."""

from __future__ import annotations

from typing import Any

import pytest

from turret_server.api.schema.fusion import parse_fusion
from turret_server.engine.messages import AuxiliaryInfo
from turret_server.pipeline.auxiliary import AuxiliaryTokens
from turret_server.pipeline.tokenizer import Tokenizer


@pytest.fixture
def helped(engine, tokenizer, make_client):
    """A client of a server with an auxiliary model, whose chat template is another."""
    small = Tokenizer.load(tokenizer.path.parent)
    small.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    engine.set_ready(auxiliaries={"small": AuxiliaryInfo(max_model_len=64, kv_blocks=6)})
    return make_client(auxiliaries={"small": AuxiliaryTokens(small)})


async def test_auxiliaries_are_members_with_templates_of_their_own(helped, engine, tokenizer):
    body = {"method": "contrastive", "anchor": "small"}
    assert (await helped.chat("Hi", fusion=body, max_tokens=2)).status == 200
    (member,) = engine.requests[-1].fusion.members
    assert (member.model, tokenizer.decode(member.prompt)) == ("small", "<user>Hi")
    answer = await helped.complete([1, 2], max_tokens=2, fusion=body)
    assert answer.status == 200
    (member,) = engine.requests[-1].fusion.members
    assert (member.model, member.prompt) == ("small", [1, 2])
    # The longest chat answer is what its context leaves.
    engine.script = lambda request: [7]
    assert (await helped.chat("Hi", fusion=body)).status == 200
    request = engine.requests[-1]
    assert request.sampling.max_tokens == 64 - len(request.fusion.members[0].prompt)


def adapted(*names: str, **fields: Any) -> dict[str, Any]:
    adapters = [{"name": name, **fields} for name in names]
    return {"method": "proxy", "experts": [{"model": "small", "adapters": adapters}]} | {
        "anchor": "small"
    }


async def test_adapters_of_an_auxiliary_s_shape_are_members_on_it(helped, engine):
    engine.num_layers, engine.unfit = {"small": 3}, {"": "its tensors have other shapes"}
    await helped.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    card = (await helped.get("/v1/adapters/sql")).json
    assert card["models"] == ["small"]
    listed = (await helped.get("/v1/models")).json["data"]
    assert [one["id"] for one in listed] == ["demo", "smollm2"]
    body = adapted("sql", weight={"layers.2": 0.5})
    answer = await helped.complete([1, 2], max_tokens=2, fusion=body)
    assert answer.status == 200, answer.body
    anchor, expert = engine.requests[-1].fusion.members
    assert (anchor.model, anchor.adapters, expert.model) == ("small", (), "small")
    (use,) = expert.adapters
    assert use.weight == {"q_proj": (1.0, 1.0, 0.5), "v_proj": (1.0, 1.0, 0.5)}
    # On the main model it is nothing.
    for fields, param in (
        ({"model": "sql"}, "model"),
        ({"adapters": [{"name": "sql"}]}, "adapters[0]"),
        ({"fusion": {"method": "product", "experts": ["sql"]}}, "fusion.experts[0].model"),
    ):
        answer = await helped.complete([1, 2], **fields)
        error = answer.json["error"]
        assert (answer.status, error["param"]) == (422, param)
        assert error["why"] == "its tensors have other shapes"
        assert '{"model": "small", "adapters": [{"name": "sql"}]}' in error["fix"]


async def test_adapters_of_the_main_model_are_none_of_an_auxiliary(helped, engine):
    engine.unfit = {"small": "its tensors have other shapes"}
    await helped.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    assert (await helped.get("/v1/adapters/sql")).json["models"] == ["demo"]
    answer = await helped.complete([1, 2], max_tokens=2, fusion=adapted("sql"))
    assert answer.status == 422
    assert answer.json["error"]["param"] == "fusion.experts[0].adapters[0]"
    assert "does not fit 'small'" in answer.json["error"]["message"]
    assert engine.requests == []


async def test_a_recipe_fuses_adapters_of_an_auxiliary(engine, tokenizer, make_client):
    engine.set_ready(auxiliaries={"small": AuxiliaryInfo(max_model_len=64, kv_blocks=6)})
    engine.num_layers = {"small": 3}
    client = make_client(
        recipes={"steered": (), "wrong": (("sql", 1.0),)},
        fusions={"steered": parse_fusion(adapted("sql"))},
        auxiliaries={"small": AuxiliaryTokens(tokenizer)},
    )
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    listed = (await client.get("/v1/models")).json["data"]
    assert [one["id"] for one in listed] == ["demo", "smollm2", "steered"]
    assert (await client.complete([1], model="steered", max_tokens=2)).status == 200
    assert [m.model for m in engine.requests[-1].fusion.members] == ["small", "small"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "small"}, 404, "model"),
        ({"fusion": {"method": "product", "experts": ["small:2"]}}, 404, "fusion.experts[0].model"),
        (
            {
                "fusion": {
                    "method": "contrastive",
                    "anchor": {"model": "small", "adapters": [{"name": "x"}]},
                }
            },
            404,
            "fusion.anchor.adapters[0]",
        ),
        (
            {"fusion": {"method": "contrastive", "anchor": "small"}, "max_tokens": 63},
            400,
            "fusion.anchor",
        ),
        (
            {
                "fusion": {
                    "method": "product",
                    "experts": ["small", *({"model": "small", "prompt": [i]} for i in range(4))],
                },
                "max_tokens": 20,
            },
            400,
            "fusion",
        ),
    ],
    ids=["alone", "weight", "adapters", "context", "cache"],
)
async def test_what_auxiliaries_are_not(helped, engine, fields, status, param):
    answer = await helped.complete([1, 2], **fields)
    assert answer.status == status, answer.body
    assert answer.json["error"]["param"] == param, answer.json
    assert engine.requests == []


@pytest.fixture
def foreign(engine, tokenizer, make_client):
    """A server with an auxiliary that lacks tokens 0 to 2, and has other ids for the others."""
    ids = [-1] * 3 + [2 * i - 1 for i in range(3, tokenizer.vocab_size)]
    small = Tokenizer.load(tokenizer.path.parent)
    small.encode = lambda text, add_special_tokens=True: [len(text), 7]
    engine.set_ready(auxiliaries={"small": AuxiliaryInfo(max_model_len=64, kv_blocks=6)})
    return make_client(auxiliaries={"small": AuxiliaryTokens(small, ids)})


async def test_prompts_of_another_vocabulary_are_made_by_its_tokenizer(foreign, engine, tokenizer):
    body = {"method": "contrastive", "anchor": "small"}
    last = tokenizer.vocab_size - 1
    for fields, expected in (
        ({"prompt": [[5, 6], [7]]}, [9, 11]),
        ({"prompt": "Hello"}, [5, 7]),
        (
            {"prompt": "Hello", "fusion": {**body, "anchor": {"model": "small", "prompt": [last]}}},
            [last],
        ),
    ):
        request = {"max_tokens": 2, "fusion": body, **fields}
        assert (await foreign.post("/v1/completions", request)).status == 200
        prompts = [r.fusion.members[0].prompt for r in engine.requests]
        assert prompts[0] == expected
        engine.requests.clear()
    assert (await foreign.chat("Hi", fusion=body, max_tokens=2)).status == 200
    assert engine.requests[-1].fusion.members[0].prompt[1:] == [7]


@pytest.mark.parametrize(
    ("prompt", "anchor", "param"),
    [
        ([5, 2], "small", "fusion.anchor"),
        ([5], {"model": "small", "prompt": [10**6]}, "fusion.anchor.prompt"),
    ],
    ids=["lacks", "beyond"],
)
async def test_ids_that_another_vocabulary_lacks_are_refused(
    foreign, engine, prompt, anchor, param
):
    answer = await foreign.complete(
        prompt, max_tokens=2, fusion={"method": "contrastive", "anchor": anchor}
    )
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert engine.requests == []
