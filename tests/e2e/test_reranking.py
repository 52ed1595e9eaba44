"""Reranking behind OpenAI's client; transformers says which candidate is the best."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
import torch
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from tests.tiny_scorer import save_scorer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

QUESTION = "Name a colour, an animal and a town."
K = 6
DRAW = {"temperature": 1.5, "seed": 3, "max_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    save_scorer(folder, "roberta", max_position_embeddings=130)
    return folder


@pytest.fixture(scope="module")
def reranking(serve, base, folder):
    fusion = {"method": "guidance", "anchor": {"system": ""}, "weights": 1.5}
    recipes = {
        "best-sql": {"adapters": ["sql"], "rerank": {"scorer": "judge", "candidates": K}},
        "best-fused": {"fusion": fusion, "rerank": {"scorer": "judge", "candidates": K}},
        "fused": {"fusion": fusion},
    }
    flags = [f"--recipe={name}={json.dumps(table)}" for name, table in recipes.items()]
    with serve(f"--scorer=judge={folder}", *flags) as server:
        yield server


@pytest.fixture
async def openai(reranking):
    async with AsyncOpenAI(
        base_url=f"{reranking.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.fixture(scope="module")
def judge(folder):
    """The score of an answer, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(answer: str, question: str = QUESTION) -> float:
        with torch.no_grad():
            pair = tokenizer([(question, answer)], return_tensors="pt")
            return model(**pair).logits[0][0].item()

    return score


async def chat(openai, model, **options):
    messages = [{"role": "user", "content": QUESTION}]
    return await openai.chat.completions.create(model=model, messages=messages, **DRAW, **options)


@pytest.mark.parametrize(("model", "plain"), [("best-sql", "sql"), ("best-fused", "fused")])
async def test_a_recipe_returns_what_transformers_finds_best(openai, judge, model, plain):
    drawn = [choice.message.content for choice in (await chat(openai, plain, n=K)).choices]
    assert len(set(drawn)) > 3
    ranked = sorted(drawn, key=judge, reverse=True)
    answer = await chat(openai, model, n=3)
    assert [choice.message.content for choice in answer.choices] == ranked[:3]
    assert answer.usage.completion_tokens > 3 * DRAW["max_tokens"]


async def test_scores_and_completions(openai, judge, base):
    rerank = {"scorer": "judge", "candidates": K, "return_scores": True}
    answer = await openai.completions.create(
        model=base, prompt=QUESTION, **DRAW, n=K, extra_body={"rerank": rerank}
    )
    for choice in answer.choices:
        assert choice.rerank["score"] == pytest.approx(judge(choice.text), abs=1e-4)
    found = [choice.rerank["score"] for choice in answer.choices]
    assert found == sorted(answer.rerank["scores"], reverse=True)


async def test_refusals_by_name(openai, base):
    with pytest.raises(BadRequestError, match="cannot be streamed"):
        await chat(openai, "best-sql", stream=True)
    with pytest.raises(NotFoundError, match="judge"):
        await chat(openai, base, extra_body={"rerank": {"scorer": "jude"}})
    assert "judge" not in [model.id async for model in openai.models.list()]


async def test_documents(reranking, judge):
    documents = ["red, a cat, Rome", "no", "blue"]
    body = {"model": "judge", "query": "Colours?", "documents": documents, "use_activation": False}
    async with httpx2.AsyncClient(base_url=reranking.url, timeout=60) as http:
        results = (await http.post("/v1/rerank", json=body)).json()["results"]
    for result in results:
        wanted = judge(documents[result["index"]], "Colours?")
        assert result["relevance_score"] == pytest.approx(wanted, abs=1e-4)


async def test_a_scorer_that_is_killed_comes_back_and_nobody_else_notices(
    openai, reranking, wait_until, base
):
    (process,) = [p for p in reranking.descendants() if "turret_server.scorer" in str(p.cmdline())]
    stream = await chat(openai, base, stream=True)
    process.kill()
    assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    wait_until(lambda: not process.is_running() or process.status() == "zombie", 5, "it has ended")
    answers = await asyncio.gather(*(chat(openai, "best-sql") for _ in range(3)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1
