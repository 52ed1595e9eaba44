"""What an answer says beside its text when the request had documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from turret_server.api.chunks import ChunkWriter
from turret_server.api.documents.prompt import Shown
from turret_server.api.documents.use import DocumentUse
from turret_server.api.generation import Generation
from turret_server.api.respond import Answer
from turret_server.engine.client import EngineClient
from turret_server.pipeline.documents.cite import cite
from turret_server.pipeline.documents.prompt import Sheet, question_of
from turret_server.pipeline.documents.tasks import best, parse


class Deferred:
    """An answer whose preparation takes long; it is prepared while the client is watched.

    A client that leaves ends the preparation, and a stream gets its pings meanwhile.
    """

    def __init__(self, prepare: Callable[[], Awaitable[Answer]]) -> None:
        self._prepare = prepare

    async def collect(self) -> dict[str, Any]:
        """Prepare the answer, run it to the end and return the response."""
        return await (await self._prepare()).collect()

    async def stream(self) -> AsyncGenerator[bytes]:
        """Prepare the answer, run it and yield its events."""
        answer = await self._prepare()
        async with aclosing(answer.stream()) as events:
            async for event in events:
                yield event


@dataclass(frozen=True, slots=True)
class DocumentNotes:
    """What is said of documents in one response.

    Attributes:
        use: what the request wants of them.
        shown: what the prompts show of them.
    """

    use: DocumentUse
    shown: list[Shown]

    @property
    def num_pages(self) -> int:
        """Pages that were read."""
        return sum(len(shown.sheets) + len(shown.dropped) for shown in self.shown)

    @property
    def num_dropped(self) -> int:
        """Of them, those that no prompt shows."""
        return sum(len(shown.dropped) for shown in self.shown)

    def summary(self) -> dict[str, Any]:
        """The field `layout` of a response: what was read, and what was left out for room."""
        kept = [sheet for shown in self.shown for sheet in shown.sheets]
        dropped = [sheet for shown in self.shown for sheet in shown.dropped]
        return {
            "pages": self.num_pages,
            "words": sum(len(sheet.page.words) for sheet in kept),
            "dropped_pages": [_place(sheet) for sheet in dropped],
            "cut_lines": sum(shown.cut for shown in self.shown),
            "shrunk": any(shown.shrunk for shown in self.shown),
        }

    async def fields(self, text: str, prompt: int = 0) -> dict[str, Any]:
        """Fields that a message gets beside its content.

        Args:
            text: of the whole answer, as the model gave it.
            prompt: index of the prompt that it answers.
        """
        fields: dict[str, Any] = {}
        answer = text
        if (task := self.use.task) is not None:
            parsed = parse(task, text)
            answer = parsed.text
            found = {"value": parsed.value, "confidence": parsed.confidence}
            fields["layout"] = {
                "answer": answer,
                **{name: value for name, value in found.items() if value is not None},
            }
        if self.use.fields.cite:
            sheets = self.shown[prompt].sheets
            fields["citations"] = await asyncio.to_thread(self._cited, answer, sheets)
        return fields

    def _cited(self, answer: str, sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
        question = question_of(self.use.messages, self.use.framing.places)
        citations = cite(
            answer, [sheet.page for sheet in sheets], [sheet.layout for sheet in sheets], question
        )
        return [
            {
                "start": citation.start,
                "end": citation.end,
                **_place(sheets[citation.page]),
                "words": list(citation.words),
                "text": citation.text,
                "box": [round(side, 4) for side in citation.box],
                "unit": sheets[citation.page].page.unit,
                "score": round(citation.score, 4),
            }
            for citation in citations
        ]


class PageByPage:
    """Asks every page by itself, all in one batch, and gives the answer of the surest.

    Args:
        engine: that generates.
        generation: a choice for each page.
        notes: of the documents.
        include_usage: a stream ends with the usage.
    """

    def __init__(
        self,
        engine: EngineClient,
        generation: Generation,
        notes: DocumentNotes,
        *,
        include_usage: bool,
    ) -> None:
        self._engine = engine
        self._generation = generation
        self._notes = notes
        self._include_usage = include_usage

    async def collect(self) -> dict[str, Any]:
        """Run to the end and return the response."""
        generation = self._generation
        choice = await self._choice()
        return {
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": generation.fingerprint,
            "choices": [choice],
            "usage": generation.usage(),
            "layout": self._notes.summary(),
        }

    async def stream(self) -> AsyncGenerator[bytes]:
        """Run, and yield the answer as one event: no word of it is sure before."""
        writer = ChunkWriter(
            self._generation,
            "chat.completion.chunk",
            b',"delta":{"content":',
            b"}",
            include_usage=self._include_usage,
            continuous_usage=False,
        )
        choice = await self._choice()
        choice["delta"] = choice.pop("message")
        yield writer.full(choice.pop("index"), choice, {"layout": self._notes.summary()})
        if self._include_usage:
            yield writer.usage()

    async def _choice(self) -> dict[str, Any]:
        generation, notes = self._generation, self._notes
        texts: list[list[str]] = [[] for _ in generation.choices]
        async with aclosing(generation.deltas(self._engine)) as deltas:
            async for delta in deltas:
                texts[delta.choice.index].append(delta.text)
        assert notes.use.task is not None
        answers = [parse(notes.use.task, "".join(parts)) for parts in texts]
        at = best(answers) or 0
        fields = await notes.fields("".join(texts[at]), at)
        (sheet,) = notes.shown[at].sheets
        fields["layout"] |= _place(sheet)
        chosen = generation.choices[at]
        return {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": answers[at].text,
                "refusal": None,
                **fields,
            },
            "logprobs": None,
            "finish_reason": chosen.finish_reason,
            "stop_reason": chosen.stop_reason,
        }


def _place(sheet: Sheet) -> dict[str, int]:
    """Which document, from 0 as the parts of the request, and which page of it, from 1."""
    return {"document": sheet.document, "page": sheet.page.number}
