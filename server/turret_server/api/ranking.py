"""Which of the answers that were drawn are returned: those with the best scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from turret_server.api.documents.use import DocumentUse
from turret_server.api.generation import Choice
from turret_server.api.schema.fields import GenerationBody
from turret_server.api.service import Service
from turret_server.errors import BadRequest, DeadlineExceeded, NotFound, Unprocessable
from turret_server.pipeline.rerank import RerankSpec
from turret_server.scorer.scorer import Scorer
from turret_server.scorer.text import Instruction, Row
from turret_server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answers to return.

    Attributes:
        choices: of each prompt the best n, best first.
        scores: of all candidates, by their index; None where nobody asked for them.
        summary: what the response says of it; None where it says nothing.
    """

    choices: list[Choice]
    scores: list[float] | None = None
    summary: dict[str, Any] | None = None

    def beside(self, choice: Choice) -> dict[str, Any]:
        """What the response says beside an answer."""
        if self.scores is None:
            return {}
        return {"rerank": {"score": self.scores[choice.index], "candidate": choice.index}}


@dataclass(slots=True)
class Ranking:
    """How the answers of one request are chosen.

    Attributes:
        metrics: of the app.
        n: answers to return for each prompt.
        candidates: answers to draw for each.
        spec: of a request or a recipe that reranks; None for `n` and `best_of` alone.
        scorer: that judges; None goes by log-probability per token.
        deadline: by `time.perf_counter()`.
        instructions: of each prompt, once `prepare` was called.
    """

    metrics: Metrics
    n: int
    candidates: int
    spec: RerankSpec | None = None
    scorer: Scorer | None = None
    deadline: float | None = None
    instructions: Sequence[Instruction] = field(default_factory=list)

    @property
    def needs_logprobs(self) -> bool:
        """Whether the engine must send the log-probabilities of what it draws."""
        return self.scorer is None and (self.spec is not None or self.candidates > self.n)

    async def prepare(self, instructions: Iterable[Instruction], held: ExitStack) -> None:
        """Take room with the scorer, before anything is queued.

        Args:
            instructions: of each prompt; not looked at without a scorer.
            held: gets what the request holds.

        Raises:
            BadRequest, Overloaded: what is to be scored does not fit the scorer, or its queue.
        """
        if self.scorer is None:
            return
        self.instructions = list(instructions)
        try:
            count = len(self.instructions) * self.candidates
            held.enter_context(self.scorer.enter(count, "rerank"))
            for instruction in self.instructions:
                await self.scorer.rows(instruction, [""])
        except BadRequest as error:
            error.param = "rerank"
            raise

    async def choose(self, choices: list[Choice], texts: Sequence[str]) -> Ranked:
        """Choose among finished answers.

        Args:
            choices: of the request.
            texts: of each.

        Raises:
            EngineUnavailable: the scorer's process has ended.
            DeadlineExceeded: scoring takes longer than the request may.
        """
        if self.candidates <= self.n and self.spec is None:
            return Ranked(choices)
        summary: dict[str, Any] = {}
        if self.scorer is None:
            scores = [c.logprob_sum / max(c.num_tokens, 1) for c in choices]
        else:
            scores, num_cut = await self._scores(self.scorer, texts)
            summary = {"scorer": self.scorer.name, "truncated": num_cut}
        chosen: list[Choice] = []
        for start in range(0, len(choices), self.candidates):
            group = choices[start : start + self.candidates]
            # sorted() is stable: equal answers keep their order, so the result is reproducible.
            chosen += sorted(group, key=lambda c: scores[c.index], reverse=True)[: self.n]
        if self.spec is None:
            return Ranked(chosen)
        summary = {"candidates": self.candidates, **summary}
        if not self.spec.return_scores:
            return Ranked(chosen, None, summary)
        return Ranked(chosen, scores, {**summary, "scores": scores})

    async def _scores(self, scorer: Scorer, texts: Sequence[str]) -> tuple[list[float], int]:
        left_s = None if self.deadline is None else max(self.deadline - time.perf_counter(), 0)
        scores: list[float] = []
        num_cut = 0
        try:
            async with asyncio.timeout(left_s):
                for at, instruction in enumerate(self.instructions):
                    mine = texts[at * self.candidates : (at + 1) * self.candidates]
                    rows = await scorer.rows(instruction, mine)
                    scores += await score(self.metrics, scorer, rows)
                    num_cut += sum(row.cut for row in rows)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request was not finished in time",
                "its deadline has passed while its answers were scored",
                "Raise timeout_s, or ask for fewer candidates.",
                param="timeout_s",
            ) from error
        return scores, num_cut


def ranking_of(service: Service, body: GenerationBody, started: float) -> Ranking:
    """How a request wants its answers chosen; a recipe may want it, too.

    Args:
        service: of the app.
        body: of the request.
        started: its arrival, by `time.perf_counter()`.

    Raises:
        BadRequest: it contradicts itself, or is to be streamed.
        NotFound: there is no such scorer.
    """
    n, best_of = body.n or 1, getattr(body, "best_of", None)
    spec = service.recipes.reranks.get(body.model or "")
    if body.rerank is not None:
        spec = body.rerank.spec()
    if spec is None:
        return Ranking(service.metrics, n, best_of or n)
    _check(body, spec, n, best_of)
    scorer = None
    if spec.scorer is not None:
        scorer = find_scorer(service, spec.scorer, "rerank.scorer")
    deadline = None if body.timeout_s is None else started + body.timeout_s
    return Ranking(service.metrics, n, spec.candidates, spec, scorer, deadline)


async def score(metrics: Metrics, scorer: Scorer, rows: Sequence[Row]) -> list[float]:
    """The score of each row, and a note of it in the metrics.

    Raises:
        EngineUnavailable: the scorer's process has ended.
    """
    began = time.perf_counter()
    values = await scorer.values(rows)
    metrics.scored(scorer.name, len(rows), time.perf_counter() - began)
    return values


def check_documents(ranking: Ranking, documents: DocumentUse) -> None:
    """Refuse to rerank answers about documents where that cannot be.

    Raises:
        Unprocessable: their text is not in the instruction, or every page is asked by itself.
    """
    if ranking.spec is not None and (ranking.scorer is not None or documents.by_page):
        raise Unprocessable(
            "answers about documents cannot be reranked so",
            "every page is asked by itself"
            if documents.by_page
            else "a scorer does not see the documents",
            "Leave rerank out, or its scorer: then the likeliest answer is best.",
            param="rerank",
        )


def find_scorer(service: Service, name: str, param: str) -> Scorer:
    """The scorer of a name.

    Raises:
        NotFound: there is none; says which there are.
    """
    if (scorer := service.scorers.get(name)) is None:
        raise NotFound(
            f"there is no scorer {name[:128]!r}",
            f"this server has {', '.join(service.scorers) or 'none'}",
            "Start it with --scorer NAME=MODEL.",
            param=param,
        )
    return scorer


def _check(body: GenerationBody, spec: RerankSpec, n: int, best_of: int | None) -> None:
    if body.stream:
        raise BadRequest(
            "reranked answers cannot be streamed",
            "the best answer is known when all are finished",
            "Set stream to false, or leave rerank out."
            if body.rerank is not None
            else "Set stream to false, or use a model that does not rerank.",
            param="stream",
        )
    if best_of is not None:
        raise BadRequest(
            "'best_of' contradicts the reranking",
            f"{spec.candidates} answers are drawn for it",
            "Leave best_of out, and set rerank.candidates.",
            param="best_of",
        )
    if n > spec.candidates:
        raise BadRequest(
            f"'n' is {n}",
            f"the best n are chosen among {spec.candidates} candidates",
            "Raise rerank.candidates or lower n.",
            param="n",
        )
