"""Answers about documents are reranked by log-probability; scorers do not see the documents."""

from __future__ import annotations

import pytest
from tests.server.api.documents.conftest import document

from turret_server.scorer.scorer import Scorer


class Nobody:
    def rows(self, instruction, answers):
        raise AssertionError("a scorer was asked")

    score = rows


@pytest.fixture
def client(make_client):
    return make_client(scorers={"judge": Scorer("judge", Nobody(), Nobody(), 1, 8)})


async def test_the_likeliest_answer_is_best(ask, engine):
    answer = await ask(document(), rerank={"candidates": 3}, max_tokens=2, seed=0)
    assert answer.json["rerank"] == {"candidates": 3}
    assert len(engine.requests) == 3
    assert answer.json["layout"]["pages"] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"rerank": {"scorer": "judge"}},
        {"rerank": {"candidates": 2}, "layout": {"task": "mp-docvqa-by-page"}},
    ],
)
async def test_refused(ask, engine, fields):
    answer = await ask(document(), **fields)
    assert (answer.status, answer.json["error"]["param"]) == (422, "rerank"), answer.json
    assert engine.requests == []
