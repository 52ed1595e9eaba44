"""Fusion on the demo model: every method against transformers with PEFT, and as a model to clients.

Tolerances are on log-probabilities. Those of one model are off by 2e-5 at most (see
test_mixed_batch.py); a weight multiplies that, and 2 (M_t - M_a) + M adds five of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
import torch
from openai import AsyncOpenAI
from peft import PeftModel
from tests.fusion_reference import check_answer, message, transformers_model
from transformers import AutoModelForCausalLM

from turret_server.engine.messages import AdapterUse
from turret_server.pipeline.fusion import FusionSpec, MemberSpec

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NEW_TOKENS = 6
QUESTION = "A village lay at the foot of a mountain, and in it lived a clockmaker. Continue."
BASE, A, B = MemberSpec(model="base"), MemberSpec(model="r8"), MemberSpec(model="r16")
SPECS = {
    "proxy": FusionSpec(method="proxy", anchor=BASE, experts=(A,), weights=(1.5,)),
    "ensemble": FusionSpec(method="ensemble", anchor=A, experts=(B,), weights=(1.0,)),
    "dexperts": FusionSpec(method="dexperts", anchor=A, experts=(B,), weights=2.0, nucleus=0.9),
    "contrastive": FusionSpec(
        method="contrastive", anchor=replace(A, temperature=0.5), weights=1.0, plausible=0.1
    ),
    "dynamic": FusionSpec(method="dynamic", anchor=A, experts=(B,), trace=True),
    "dynamic of two": FusionSpec(method="dynamic", anchor=BASE, experts=(A, B), trace=True),
    "joint": FusionSpec(method="dynamic", anchor=BASE, experts=(A, B), joint=True, trace=True),
    "sum": FusionSpec(method="sum", experts=(A,), weights=(0.5, 0.5)),
    "product": FusionSpec(method="product", experts=(A, B), weights=(0.2, 0.5, 0.3)),
    "mixture": FusionSpec(method="mixture", experts=(A, B), weights=(0.2, 0.5, 0.3)),
}


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine(dtype="float32")


@pytest.fixture(scope="module")
def specs(chat_ids):
    other = MemberSpec(prompt=chat_ids("Continue a story."))
    return SPECS | {"guidance": FusionSpec(method="guidance", anchor=other, weights=1.5)}


@pytest.fixture(scope="module")
def requests(engine, specs, chat_ids):
    """One per method, and two ordinary ones; every other fused answer is drawn, not greedy."""
    prompt = chat_ids(QUESTION)
    uses = {"base": ()} | {m: (AdapterUse(engine.digests[m]),) for m in ("r8", "r16")}
    fused = []
    for i, (name, spec) in enumerate(specs.items()):
        sampling = {"temperature": 0.7 * (i % 2), "seed": i, "max_tokens": NEW_TOKENS}
        request = engine.request("base", prompt, **sampling)
        fusion = message(spec, "base", prompt, uses)
        fused.append(msgspec.structs.replace(request, id=name, fusion=fusion))
    plain = [engine.request(m, prompt, max_tokens=9, temperature=0.0) for m in ("r8", "base")]
    return [*fused, *plain]


@pytest.fixture(scope="module")
def together(engine, requests):
    return engine.run(requests)


def test_methods_are_what_transformers_and_numpy_give(
    demo_folder, adapters, specs, requests, together
):
    base = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
    models = {"base": transformers_model(base)}
    for name in ("r8", "r16"):
        base = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
        models[name] = transformers_model(PeftModel.from_pretrained(base, str(adapters[name])))
    for request in requests[: len(specs)]:
        spec, answer = specs[request.id], together[request.id]
        names = ["base", *(member.model or "base" for member in spec.members)]
        prompts = [request.prompt, *(m.prompt or request.prompt for m in spec.members)]
        weights = None
        if spec.method == "dynamic":
            weights = [entry.weights for entry in answer.entries]
        check_answer(
            spec,
            [models[name] for name in names],
            prompts,
            answer.tokens,
            answer.entries,
            weights,
            1e-4,
            greedy=request.sampling.temperature == 0,
        )


def test_each_gets_what_it_gets_alone(engine, requests, together):
    for request in requests:
        alone = engine.run([request])[request.id]
        assert alone.tokens == together[request.id].tokens, request.id
        # Dynamic weights are searched to 1e-3 of their loss: another last bit, another weight.
        tolerance = 5e-3 if request.id in ("dynamic", "dynamic of two", "joint") else 1e-4
        for own, other in zip(alone.logprobs, together[request.id].logprobs, strict=True):
            assert own == pytest.approx(other, abs=tolerance), request.id


FUSION = '{"fusion": {"method": "proxy", "experts": ["sql"], "anchor": "%s", "weights": 1.5}}'


@pytest.fixture(scope="module")
def fusing(serve, base):
    """The demo model with a fused recipe, and with itself as an auxiliary."""
    recipe = f"--recipe=strong={FUSION % base}"
    with serve("--dtype=float32", recipe, "--auxiliary=twin=demo") as server:
        yield server


@pytest.fixture
async def openai(fusing):
    async with AsyncOpenAI(base_url=f"{fusing.url}/v1", api_key="none", timeout=120) as client:
        yield client


@pytest.fixture
def chat(openai):
    """One question; greedy, with log-probabilities."""

    def create(model, **options):
        return openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Table a(b, c). How many b?"}],
            max_tokens=8,
            logprobs=True,
            **{"temperature": 0, **options},
        )

    return create


def logprobs_of(choice):
    return [entry.logprob for entry in choice.logprobs.content]


async def test_a_fused_recipe_is_a_model_to_openai_s_client(openai, chat, fusing, wait_until, base):
    """Streamed or not, alone or beside other traffic: the same text, the same probabilities."""
    assert "strong" in [model.id async for model in openai.models.list()]

    async def streamed(model):
        stream = await chat(model, stream=True)
        parts = [chunk.choices[0] async for chunk in stream if chunk.choices]
        text = "".join(part.delta.content or "" for part in parts)
        return text, [p for part in parts if part.logprobs for p in logprobs_of(part)]

    whole = (await chat("strong")).choices[0]
    answers = await asyncio.gather(*map(streamed, ["strong", "sql", base] * 8))
    for text, found in answers[::3]:
        assert text == whole.message.content
        assert found == pytest.approx(logprobs_of(whole), abs=1e-4)
    for _, found in answers[1:3]:
        assert found != pytest.approx(logprobs_of(whole), abs=1e-3)
    wait_until(lambda: fusing.metrics()["turret_kv_cache_usage_perc"] == 0, 5, "blocks are back")


async def test_constraints_choices_and_seeds_work_on_what_was_fused(chat):
    colors = ["red", "green", "blue", "white"]

    async def draw():
        options = {"n": 6, "seed": 5, "temperature": 2, "extra_body": {"guided_choice": colors}}
        return [choice.message.content for choice in (await chat("strong", **options)).choices]

    first, second = await draw(), await draw()
    assert first == second
    assert set(first) <= set(colors)
    assert len(set(first)) > 1


async def test_traces_reach_the_client(chat, base):
    body = {"method": "dynamic", "experts": ["sql"], "anchor": base, "trace": True}
    traced = await chat("dates", extra_body={"fusion": body})
    for entry in traced.choices[0].logprobs.content:
        own, anchor, expert = entry.fusion_weights
        assert own == 1
        assert 0 <= expert == -anchor <= 2


async def test_an_auxiliary_that_is_the_base_over_again_changes_nothing(chat, base):
    """It has weights and a cache of its own."""
    body = {"method": "mixture", "experts": ["twin"]}
    twice, once = await asyncio.gather(chat(base, extra_body={"fusion": body}), chat(base))
    assert twice.choices[0].message.content == once.choices[0].message.content
    found = logprobs_of(twice.choices[0])
    assert found == pytest.approx(logprobs_of(once.choices[0]), abs=1e-4)


ROWS = [["Item", "Quantity", "Amount"], ["Drill", "2", "298.00"], ["Total", "", "963.60"]]


def invoice() -> dict[str, object]:
    """An OCR result: a table."""
    cells = [(x, y, text) for y, row in enumerate(ROWS) for x, text in enumerate(row) if text]
    boxes = [[200 * x, 40 * y, 200 * x + 9 * len(t), 40 * y + 20] for x, y, t in cells]
    return {"words": [text for *_, text in cells], "boxes": boxes}


async def test_context_aware_decoding_of_a_document(openai, base):
    """The document against none: as with the texts written out, and not as without fusion."""
    question = "What is the total?"
    data = {"type": "document", "document": {"data": invoice()}}
    laid_out = await openai.post("/layout", body={"document": data["document"]}, cast_to=object)
    text = f"Document:\n{laid_out['pages'][0]['text']}\n\nQuestion: {question}"
    bare = [{"role": "user", "content": f"Question: {question}"}]

    async def answer(content, **anchor):
        fused = {"method": "guidance", "weights": 1.5, "anchor": anchor}
        given = await openai.chat.completions.create(
            model=base,
            messages=[{"role": "user", "content": content}],
            max_tokens=12,
            temperature=0,
            logprobs=True,
            extra_body={"fusion": fused} if anchor else {},
        )
        return given.choices[0].message.content, logprobs_of(given.choices[0])

    parts = [data, {"type": "text", "text": question}]
    (said, found), (spelt, expected), (_, alone) = await asyncio.gather(
        answer(parts, documents=False), answer(text, messages=bare), answer(parts)
    )
    assert said == spelt
    assert found == pytest.approx(expected, abs=1e-4)
    assert found != pytest.approx(alone, abs=1e-2)


async def test_adapters_act_on_an_auxiliary_as_on_the_base(chat, base):
    """Proxy-tuning: the twin with an adapter and without, or the base with it and without."""
    tuned = {"model": "twin", "adapters": [{"name": "sql"}]}
    proxy = {"method": "proxy", "weights": 1.5}
    outer, inner, alone = await asyncio.gather(
        chat(base, extra_body={"fusion": {**proxy, "experts": [tuned], "anchor": "twin"}}),
        chat(base, extra_body={"fusion": {**proxy, "experts": ["sql"], "anchor": base}}),
        chat(base),
    )
    found, expected = (logprobs_of(answer.choices[0]) for answer in (outer, inner))
    assert found == pytest.approx(expected, abs=1e-4)
    assert outer.choices[0].message.content == inner.choices[0].message.content
    assert found != pytest.approx(logprobs_of(alone.choices[0]), abs=1e-2)
