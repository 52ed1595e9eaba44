"""POST /v1/rerank: texts in order, as the rerankers of Cohere, Jina and vLLM answer."""

from __future__ import annotations

import math
import uuid
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from turret_server.api.account import Account, account
from turret_server.api.disconnect import ClientDisconnected, or_disconnect
from turret_server.api.json_body import JsonRoute
from turret_server.api.ranking import find_scorer, score
from turret_server.api.schema.rerank import RerankBody, Reranking
from turret_server.api.service import Service, service_of
from turret_server.errors import BadRequest
from turret_server.scorer.text import Instruction
from turret_server.telemetry.record import record_of

router = APIRouter(route_class=JsonRoute, tags=["Reranking"])


@router.post(
    "/v1/rerank",
    summary="Put texts in order by how well they answer a query",
    response_model=Reranking,
    response_description="The best texts first.",
)
async def rerank(
    body: RerankBody, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Score texts of the client's own, such as passages found by a search."""
    service.admission.check_draining()
    scorer, record = find_scorer(service, body.model, "model"), record_of(request.scope)
    record.model = record.label = scorer.name
    query = Instruction.of_text(body.query)
    with (
        account(service.settings.tenancy, record) as charged,
        scorer.enter(len(body.documents), "documents"),
    ):
        try:
            rows = await or_disconnect(request.receive, scorer.rows(query, body.documents))
            tokens = sum(len(row.ids) for row in rows)
            record.prompt_tokens = tokens
            await _accept(charged, tokens)
            scores = await or_disconnect(request.receive, score(service.metrics, scorer, rows))
        except ClientDisconnected:
            record.disconnected = True
            return Response(status_code=499)  # nobody reads it
    order = sorted(range(len(scores)), key=lambda at: scores[at], reverse=True)
    results = []
    for at in order[: body.top_n]:
        shown = scores[at]
        if body.use_activation is not False:
            shown = _probability(shown, scorer.num_labels)
        result: dict[str, Any] = {"index": at, "relevance_score": shown}
        if body.return_documents is not False:
            result["document"] = {"text": body.documents[at]}
        results.append(result)
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": scorer.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _accept(charged: Account, tokens: int) -> None:
    try:
        await charged.accept_tokens(tokens)
    except BadRequest as error:  # more than a minute's worth
        error.param = "documents"
        raise


def _probability(value: float, num_labels: int) -> float:
    """From 0 to 1: of a log-probability what it is the logarithm of, of a logit its sigmoid."""
    if num_labels > 1:
        return math.exp(value)
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
