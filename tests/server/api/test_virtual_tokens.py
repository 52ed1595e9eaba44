"""Adapters that put virtual tokens before the prompt: what is counted, and what must fit."""

import pytest

CONTEXT = 2048  # of the fake engine


@pytest.fixture
async def soft(client, engine):
    """A client with an adapter of 100 virtual tokens, and one without any."""
    for name, count in (("soft", 100), ("plain", 0)):
        engine.num_virtual_tokens = count
        path = {"soft": "sql", "plain": "json"}[name]
        body = {"lora_name": name, "lora_path": path}
        assert (await client.post("/v1/load_lora_adapter", body)).status == 200
    return client


def error(answer):
    assert answer.status == 400, answer.json
    return answer.json["error"]


async def test_the_card_says_how_many(soft):
    cards = (await soft.get("/v1/adapters")).json["data"]
    assert {c["id"]: c["num_virtual_tokens"] for c in cards} == {"soft": 100, "plain": 0}


async def test_they_are_there_or_not_and_the_refusal_says_whose(soft, engine):
    for fields, param in (
        ({"model": "soft:0.5+plain"}, "model"),
        ({"adapters": [{"name": "plain"}, {"name": "soft", "weight": 2}]}, "adapters[1].weight"),
    ):
        answer = await soft.chat("Hi", **fields)
        assert answer.status == 422, answer.json
        found = answer.json["error"]
        assert "'soft'" in found["what"]
        assert found["param"] == param
    assert (await soft.chat("Hi", model="soft:0+plain")).status == 200
    assert (await soft.chat("Hi", model="soft:1+plain")).status == 200


async def test_they_are_no_tokens_of_the_prompt(soft, engine):
    answer = await soft.complete([1, 2, 3], model="soft", max_tokens=4, echo=True, logprobs=1)
    assert answer.json["usage"]["prompt_tokens"] == 3
    assert answer.json["usage"]["total_tokens"] == 7
    assert len(answer.json["choices"][0]["logprobs"]["tokens"]) == 7
    assert engine.requests[-1].prompt == [1, 2, 3]


async def test_they_take_room_in_the_context(soft, engine):
    fits = await soft.complete([1, 2, 3], model="soft", max_tokens=CONTEXT - 103)
    assert fits.status == 200
    found = error(await soft.complete([1, 2, 3], model="soft", max_tokens=CONTEXT - 102))
    assert "100 virtual tokens" in found["why"]
    assert str(CONTEXT - 103) in found["fix"]
    assert found["param"] == "max_tokens"
    plain = await soft.complete([1, 2, 3], model="plain", max_tokens=CONTEXT - 102)
    assert plain.status == 200


async def test_a_prompt_that_leaves_no_room(soft):
    found = error(await soft.complete([1] * (CONTEXT - 100), model="soft", max_tokens=1))
    assert "100 virtual tokens" in found["what"]
    assert found["code"] == "context_length_exceeded"
    assert (await soft.complete([1] * (CONTEXT - 101), model="soft", max_tokens=1)).status == 200


async def test_what_is_left_over_is_the_default_of_a_chat(soft, engine):
    engine.script = lambda request: [7]
    counts = {}
    for model in ("soft", "plain"):
        assert (await soft.chat("Hi", model=model)).status == 200
        counts[model] = engine.requests[-1].sampling.max_tokens
    assert counts["plain"] - counts["soft"] == 100


@pytest.mark.parametrize(
    ("model", "adapters", "virtual"),
    [
        ("soft:0+plain", [], 0),  # a weight of 0 leaves them out
        ("plain+soft", [], 100),
        ("plain", [{"name": "soft"}], 100),
        ("plain", [{"name": "soft", "weight": 0}], 0),
    ],
)
async def test_stacks(soft, model, adapters, virtual):
    ask = {"model": model, "adapters": adapters}
    room = CONTEXT - 3 - virtual
    assert (await soft.complete([1, 2, 3], max_tokens=room, **ask)).status == 200
    error(await soft.complete([1, 2, 3], max_tokens=room + 1, **ask))
