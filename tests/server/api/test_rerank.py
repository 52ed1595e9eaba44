"""Reranking in requests and recipes, and POST /v1/rerank, with a scorer that counts letters."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from turret_server.api.schema import rerank, responses
from turret_server.errors import BadRequest, EngineUnavailable
from turret_server.pipeline.rerank import RerankSpec
from turret_server.scorer.scorer import Scorer
from turret_server.scorer.text import Instruction, Row

WORDS = [" no", " yes", " eleven", " eve"]


@dataclass
class Letters:
    """Text as code points; the score is the number of letters "e" behind the instruction."""

    asked: list[str] = field(default_factory=list)
    rows_scored: int = 0
    failure: Exception | None = None
    gate: asyncio.Event | None = None  # no score before it is set
    longest: int = 1000

    def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        if "refuse me" in instruction.text:
            raise BadRequest("no conversation", "roles alternate", param="messages")
        self.asked.append(instruction.text)
        return [Row([*map(ord, answer)], cut=len(answer) > self.longest) for answer in answers]

    async def score(self, rows: Sequence[Row]) -> list[float]:
        if self.gate is not None:
            await self.gate.wait()
        self.rows_scored += len(rows)
        if self.failure is not None:
            raise self.failure
        return [float(row.ids.count(ord("e"))) for row in rows]


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def client(make_client, letters, engine, tokenizer):
    """Seed i answers with the i-th word."""
    words = [tokenizer.encode(word, add_special_tokens=False) for word in WORDS]
    engine.script = lambda request: words[request.sampling.seed % len(words)]
    return make_client(
        scorers={"judge": Scorer("judge", letters, letters, 1, 8)},
        recipes={"best": (), "likely": ()},
        reranks={"best": RerankSpec(4, "judge", True), "likely": RerankSpec(2)},
    )


def texts(answer) -> list[str]:
    return [c.get("text") or c["message"]["content"] for c in answer.json["choices"]]


RERANK = {"scorer": "judge", "candidates": 4}


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_the_best_n_are_returned_in_order(client, letters, kind):
    ask = getattr(client, kind)
    answer = await ask("Say something.", rerank=RERANK, n=3, seed=0)
    assert texts(answer) == [" eleven", " eve", " yes"]
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert answer.json["rerank"] == {"candidates": 4, "scorer": "judge", "truncated": 0}
    assert "rerank" not in answer.json["choices"][0]
    assert letters.asked[-1] == "Say something."


async def test_scores_are_told_on_demand(client):
    answer = await client.complete("Hi", rerank={**RERANK, "return_scores": True}, n=2, seed=1)
    body = answer.json
    assert body["rerank"]["scores"] == [1.0, 3.0, 2.0, 0.0]
    assert [c["rerank"] for c in body["choices"]] == [
        {"score": 3.0, "candidate": 1},
        {"score": 2.0, "candidate": 2},
    ]
    responses.Completion.model_validate_json(answer.body, strict=True, extra="forbid")
    chat = await client.chat(rerank={**RERANK, "return_scores": True}, seed=1)
    responses.ChatCompletion.model_validate_json(chat.body, strict=True, extra="forbid")


async def test_every_candidate_counts_in_the_usage(client, engine):
    answer = await client.complete("Hi", rerank=RERANK, seed=0)
    drawn = sum(len(engine.script(request)) for request in engine.requests)
    assert len(engine.requests) == 4
    assert answer.json["usage"]["completion_tokens"] == drawn
    assert [request.sampling.seed for request in engine.requests] == [0, 1, 2, 3]


async def test_several_prompts_each_get_their_best(client, letters):
    answer = await client.complete(["Hi", "Ho"], rerank=RERANK, seed=2, echo=True)
    assert texts(answer) == ["Hi eleven", "Ho eleven"]  # the prompt is shown, but not judged
    assert letters.asked[-2:] == ["Hi", "Ho"]


async def test_equal_scores_keep_their_order(client):
    answer = await client.complete("Hi", rerank={**RERANK, "candidates": 8}, n=3, seed=0)
    assert texts(answer) == [" eleven", " eleven", " eve"]


async def test_a_prompt_of_tokens_is_judged_as_text(client, letters, tokenizer):
    await client.complete(tokenizer.encode("Say something."), rerank=RERANK)
    assert letters.asked[-1] == "Say something."


async def test_without_a_scorer_tokens_stay_tokens(client, tokenizer, monkeypatch):
    def decode(*_):
        raise AssertionError

    monkeypatch.setattr(tokenizer, "decode", decode)
    assert (await client.complete(tokenizer.encode("Say something."))).status == 200


async def test_equal_answers_are_scored_once(client, letters):
    await client.complete("Hi", rerank={**RERANK, "candidates": 8}, seed=0)
    assert letters.rows_scored == 4


async def test_what_was_too_long_is_counted(client, letters):
    letters.longest = 5
    answer = await client.complete("Hi", rerank=RERANK, seed=0)
    assert answer.json["rerank"]["truncated"] == 1


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_without_a_scorer_the_likeliest_per_token_is_best(client, engine, tokenizer, kind):
    body = {"rerank": {"candidates": 4, "return_scores": True}, "seed": 0, "max_tokens": 1}
    answer = await getattr(client, kind)("Hi", **body)
    prompt = engine.requests[0].prompt
    known = [
        engine.model.entry(prompt, engine.script(request)[0], 0).logprob
        for request in sorted(engine.requests, key=lambda r: r.sampling.seed)
    ]
    assert answer.json["rerank"]["scores"] == pytest.approx(known)
    best = max(range(4), key=known.__getitem__)
    assert answer.json["choices"][0]["rerank"] == {"score": known[best], "candidate": best}
    assert answer.json["choices"][0]["logprobs"] is None


async def test_a_recipe_reranks(client, letters):
    answer = await client.chat("Hi", model="best", seed=2)
    assert answer.json["model"] == "best"
    assert answer.json["rerank"]["scores"] == [3.0, 2.0, 0.0, 1.0]
    models = (await client.get("/v1/models")).json["data"]
    assert {"best", "likely"} <= {model["id"] for model in models}
    assert "judge" not in {model["id"] for model in models}
    own = await client.chat("Hi", model="best", rerank={"candidates": 2}, seed=2)
    assert own.json["rerank"] == {"candidates": 2}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"rerank": {"scorer": "jude"}}, 404, "rerank.scorer"),
        ({"rerank": {"scorer": "best"}}, 404, "rerank.scorer"),
        ({"rerank": {**RERANK, "candidates": 0}}, 400, "rerank.candidates"),
        ({"rerank": {**RERANK, "candidates": 129}}, 400, "rerank.candidates"),
        ({"rerank": {**RERANK, "template": "{{ x }}"}}, 400, "rerank.template"),
        ({"rerank": "judge"}, 400, "rerank"),
        ({"rerank": RERANK, "n": 5}, 400, "n"),
        ({"rerank": RERANK, "stream": True}, 400, "stream"),
        ({"model": "best", "stream": True}, 400, "stream"),
        ({"rerank": {**RERANK, "candidates": 9}}, 400, "rerank"),  # more than may wait
        ({"model": "judge"}, 404, "model"),
    ],
)
async def test_refusals(client, engine, fields, status, param):
    for answer in [await client.chat("Hi", **fields), await client.complete("Hi", **fields)]:
        assert answer.status == status, answer.json
        assert answer.json["error"]["param"] == param
    assert engine.requests == []


async def test_more_refusals(client, engine):
    answer = await client.complete("Hi", rerank=RERANK, best_of=2)
    assert (answer.status, answer.json["error"]["param"]) == (400, "best_of")
    answer = await client.chat("refuse me", rerank=RERANK)
    assert (answer.status, answer.json["error"]["param"]) == (400, "rerank")
    assert engine.requests == []


async def test_a_full_queue_refuses_before_anything_is_drawn(client, engine, letters):
    letters.gate = asyncio.Event()
    first = asyncio.create_task(client.complete("Hi", rerank={**RERANK, "candidates": 8}))
    while len(engine.finished) < 8:
        await asyncio.sleep(0.001)
    second = await client.complete("Hi", rerank=RERANK)
    assert second.status == 429
    assert len(engine.requests) == 8
    letters.gate.set()
    assert (await first).status == 200
    assert (await client.complete("Hi", rerank=RERANK)).status == 200


async def test_a_deadline_holds_for_the_scorer_too(client, letters):
    letters.gate = asyncio.Event()  # which nobody sets
    answer = await client.complete("Hi", rerank=RERANK, timeout_s=0.05)
    assert (answer.status, answer.json["error"]["param"]) == (504, "timeout_s")


async def test_a_scorer_that_has_ended(client, letters):
    letters.failure = EngineUnavailable("the scorer 'judge' cannot answer", "it has ended")
    assert (await client.complete("Hi", rerank=RERANK)).status == 503


DOCUMENTS = ["none", {"text": "every evening"}, "the", ""]


async def test_metrics_count_what_was_scored(client):
    await client.complete("Hi", rerank=RERANK)
    page = (await client.get("/metrics")).body.decode()
    assert 'turret_scored_texts_total{scorer="judge"} 4.0' in page
    assert 'turret_score_time_seconds_count{scorer="judge"} 1.0' in page


async def test_documents_in_order(client):
    body = {"model": "judge", "query": "When?", "documents": DOCUMENTS}
    answer = await client.post("/v1/rerank", {**body, "top_n": 2, "use_activation": False})
    found = answer.json
    assert found["results"] == [
        {"index": 1, "relevance_score": 4.0, "document": {"text": "every evening"}},
        {"index": 0, "relevance_score": 1.0, "document": {"text": "none"}},
    ]
    assert found["usage"] == {"prompt_tokens": 20, "total_tokens": 20}
    rerank.Reranking.model_validate_json(answer.body, strict=True, extra="forbid")
    plain = (await client.post("/v1/rerank", {**body, "return_documents": False})).json["results"]
    assert [result["index"] for result in plain] == [1, 0, 2, 3]
    assert plain[0] == {"index": 1, "relevance_score": pytest.approx(1 / (1 + math.exp(-4)))}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "best"}, 404, "model"),
        ({"model": "demo"}, 404, "model"),
        ({"query": ""}, 400, "query"),
        ({"query": "x" * 65_537}, 400, "query"),  # it is read once for every document
        ({"documents": []}, 400, "documents"),
        ({"documents": [3]}, 400, "documents[0]"),
        ({"documents": [{"title": "x"}]}, 400, "documents[0]"),
        ({"documents": ["x"] * 1001}, 400, "documents"),
        ({"documents": ["x"] * 9}, 400, "documents"),
        ({"top_n": 0}, 400, "top_n"),
        ({"max_chunks_per_doc": 3}, 400, "max_chunks_per_doc"),
    ],
)
async def test_refused_documents(client, fields, status, param):
    body = {"model": "judge", "query": "When?", "documents": ["now"]}
    answer = await client.post("/v1/rerank", {**body, **fields})
    assert (answer.status, answer.json["error"]["param"]) == (status, param)


async def test_a_server_that_ends_scores_no_more_documents(client, letters):
    client.app.state.service.admission.draining = True
    body = {"model": "judge", "query": "When?", "documents": ["now"]}
    answer = await client.post("/v1/rerank", body)
    assert (answer.status, answer.json["error"]["code"]) == (503, "engine_unavailable")
    assert letters.asked == []
