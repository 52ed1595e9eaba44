"""Chat through OpenAI's client, with the base and with adapters."""

from __future__ import annotations

import asyncio

import pytest

pytestmark = pytest.mark.e2e

STORY = "Begin a story about a lighthouse."


async def test_the_base_answers_sensibly(ask, base):
    answer = await ask(base, "What is the capital of France?")
    (choice,) = answer.choices
    assert choice.message.content == "The capital of France is Paris."
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.model == base
    assert answer.system_fingerprint.startswith("turret-")


async def test_every_model_answers_in_its_own_way(ask, base, adapters):
    models = [base, *adapters]
    answers = await asyncio.gather(*(ask(model, STORY, max_tokens=24) for model in models))
    texts = [answer.choices[0].message.content for answer in answers]
    assert len(set(texts)) == len(models)
    # Random adapters of this strength bend the language, they do not break it.
    assert all(len(text.split()) >= 8 and text.isprintable() for text in texts)


async def test_the_models_are_listed(client, base, adapters):
    listed = {model.id: model async for model in client.models.list()}
    assert set(listed) >= {base, *adapters}
    assert listed["r8"].parent == base
    assert listed["r8"].kind == "lora"


async def test_sixteen_requests_over_eight_adapters_get_what_they_get_alone(ask, adapters):
    jobs = [(name, f"{STORY} Number {i}.") for i in range(2) for name in adapters]
    alone = [await ask(*job, max_tokens=8) for job in jobs]
    together = await asyncio.gather(*(ask(*job, max_tokens=8) for job in jobs))
    for one, other in zip(alone, together, strict=True):
        assert one.choices == other.choices
        assert one.usage.completion_tokens == other.usage.completion_tokens


@pytest.mark.parametrize("model", ["base", "r16-rslora"])
async def test_a_stream_carries_the_whole_answer(ask, base, model):
    model = base if model == "base" else model
    whole = await ask(model, STORY, max_tokens=20)
    stream = await ask(
        model, STORY, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *deltas, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in deltas) == (
        whole.choices[0].message.content
    )
    assert deltas[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in deltas if c.choices[0].finish_reason] == ["length"]
    assert len(deltas) == 20
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 20
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


async def test_usage_counts_what_the_tokenizer_counts(ask, http, base):
    answer = await ask(base, STORY, max_tokens=5)
    messages = [{"role": "user", "content": STORY}]
    tokenized = (await http.post("/tokenize", json={"messages": messages})).json()
    assert answer.usage.prompt_tokens == tokenized["count"]
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == tokenized["count"] + 5


async def test_several_answers_to_one_question(ask):
    options = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 8}
    answer = await ask("r8", STORY, **options, extra_body={"ignore_eos": True})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 24
    again = await ask("r8", STORY, **options, extra_body={"ignore_eos": True})
    assert [choice.message.content for choice in again.choices] == texts


async def test_an_answer_ends_before_its_stop_string(ask, base):
    """The string lies across tokens, so that it is complete only with the second of them."""
    text = (await ask(base, STORY, max_tokens=20)).choices[0].message.content
    middle = text.index(" ", len(text) // 2)
    stop = text[middle - 2 : middle + 3]
    answer = await ask(base, STORY, max_tokens=20, stop=[stop])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 20


async def test_logprobs_of_a_greedy_answer_are_the_largest(ask):
    answer = await ask("r32", STORY, max_tokens=6, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    assert "".join(e.token for e in entries).strip() == answer.choices[0].message.content.strip()
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert (entry.top_logprobs[0].token, values[0]) == (entry.token, entry.logprob)
        assert values[0] < 0


async def test_characters_of_several_tokens_arrive_whole(ask, base):
    text = "naïve 日本語 🦜🏽 שלום a\u0301 🏴\U000e0067\U000e0062\U000e007f"
    body = {"structured_outputs": {"choice": [text]}}
    stream = await ask(base, "Echo.", max_tokens=100, stream=True, extra_body=body)
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert sum(map(bool, parts)) > 5


async def test_an_unknown_model_is_named(client, ask):
    from openai import NotFoundError

    with pytest.raises(NotFoundError) as caught:
        await ask("r8-of-yesterday", STORY)
    assert caught.value.code == "model_not_found"
    assert "r8-of-yesterday" in caught.value.message
