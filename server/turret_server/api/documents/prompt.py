"""The documents of a chat request, read and put into its prompt as far as they fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from turret_server.api.documents.use import DocumentUse
from turret_server.api.schema.chat import num_chars
from turret_server.api.service import Service
from turret_server.api.threads import threads_for
from turret_server.errors import DeadlineExceeded, PromptTooLong, TurretError, Unprocessable
from turret_server.pipeline.documents.budget import Fitted, fit
from turret_server.pipeline.documents.prompt import Sheet, in_order, question_of

Render = Callable[[list[dict[str, Any]]], list[int]]

# For an answer whose length the request leaves open; documents get the rest of the context.
_ANSWER_TOKENS = 512
# Where every page is asked for a short passage and the request leaves it open.
PAGE_ANSWER_TOKENS = 200
# Texts side by side may take a token more than each alone.
_SLACK_TOKENS = 2
_LEAST_S = 0.001  # a deadline that has passed is the engine's to tell


@dataclass(frozen=True, slots=True)
class Shown:
    """What one prompt shows of the documents.

    Attributes:
        prompt: token ids.
        sheets: pages in it.
        dropped: pages that did not fit.
        shrunk: runs of spaces were shortened.
        cut: lines that were left out of a page.
    """

    prompt: list[int]
    sheets: list[Sheet]
    dropped: list[Sheet] = field(default_factory=list)
    shrunk: bool = False
    cut: int = 0


async def show_documents(
    service: Service, use: DocumentUse, room: int, render: Render, namespace: str
) -> list[Shown]:
    """Read the documents and put them into prompts: one, or one for each page.

    Args:
        service: of the app.
        use: from `document_use`.
        room: tokens that the context leaves for a prompt.
        render: messages of text to token ids.
        namespace: see `DocumentReader.read`.

    Raises:
        BadRequest, Unprocessable, PayloadTooLarge, Overloaded, FetchFailed: see
            `DocumentReader.read`.
        PromptTooLong: not even one line of the documents fits.
    """
    composer = _Composer(service, use, room, render)
    await asyncio.to_thread(composer.check)
    try:
        inputs = list(use.inputs.values())
        documents = await service.documents.read(inputs, use.fields, namespace)
    except TurretError as error:
        if error.param == "pages":
            error.param = "layout.pages"
        raise
    special = service.tokenizer.special_texts
    sheets = [
        Sheet(place, number, len(read.pages), page, text, _disarmed(text.text, special))
        for number, (place, read) in enumerate(zip(use.inputs, documents, strict=True))
        for page, text in zip(read.pages, read.texts, strict=True)
    ]
    if not any(sheet.page.words for sheet in sheets):
        raise Unprocessable(
            "the documents hold no text",
            f"no word was found on {len(sheets)} pages",
            "Check what was sent; pages that are pictures need layout.ocr 'auto' or 'always'.",
            param=next(iter(use.inputs.values())).where,
        )
    threads = threads_for(composer.num_chars(sheets))
    return await asyncio.get_running_loop().run_in_executor(threads, composer.prompts, sheets)


class _Composer:
    """Puts pages into the prompts of one request. For a thread: it tokenises all of them."""

    def __init__(
        self,
        service: Service,
        use: DocumentUse,
        room: int,
        render: Render,
    ) -> None:
        self._tokenizer = service.tokenizer
        self._longest_token = service.longest_token
        self._use = use
        self._room = room
        self._render = render

    def check(self) -> None:
        """Refuse a conversation that does not fit even without its documents.

        Raises:
            PromptTooLong: it does not.
        """
        chars = self._conversation_chars()
        # No token is longer: a text of so many characters is too long, without tokenising it.
        least = chars // self._longest_token
        around = least if least >= self._room else len(self._render(self._use.text([])))
        if around >= self._room:
            raise PromptTooLong(
                f"the prompt has {around} tokens or more without its documents",
                f"{max(self._room, 0)} are left for it beside the answer",
                "Shorten the conversation, or ask for fewer tokens.",
                param="messages",
            )

    def num_chars(self, sheets: list[Sheet]) -> int:
        """What `prompts` reads, each character once."""
        times = len(sheets) if self._use.by_page else 1
        return sum(len(sheet.text) for sheet in sheets) + times * self._conversation_chars()

    def prompts(self, sheets: list[Sheet]) -> list[Shown]:
        """The prompts that show the pages."""
        question = question_of(self._use.messages, self._use.framing.places)
        if self._use.by_page and sheets:
            return [self._prompt([sheet], question) for sheet in sheets]
        ordered = in_order(sheets, question, self._use.fields.order or "given")
        return [self._prompt(ordered, question)]

    def _conversation_chars(self) -> int:
        return sum(num_chars(message.get("content")) for message in self._use.text([]))

    def _prompt(self, sheets: list[Sheet], question: str) -> Shown:
        fitted = self._fit(sheets, question)
        kept = [
            replace(sheets[at], text=text)
            for at, text in zip(fitted.pages, fitted.texts, strict=True)
        ]
        dropped = [sheets[at] for at in fitted.dropped_pages]
        prompt = self._render(self._use.text(kept))
        return Shown(prompt, kept, dropped, fitted.shrunk, fitted.cut)

    def _fit(self, sheets: list[Sheet], question: str) -> Fitted:
        texts = [sheet.text for sheet in sheets]
        empty = [replace(sheet, text="") for sheet in sheets]
        around = len(self._render(self._use.text(empty)))
        budget = self._room - around - _SLACK_TOKENS * len(sheets)
        named = False
        if (most := self._use.fields.max_tokens) is not None and most < budget:
            budget, named = most, True
        try:
            return fit(texts, question, self._tokenizer.count, budget)
        except PromptTooLong as error:
            error.param = "messages"
            if named:
                error.param, error.fix = "layout.max_tokens", "Raise it, or leave it out."
            raise


@asynccontextmanager
async def within(timeout_s: float | None) -> AsyncIterator[Callable[[], float | None]]:
    """The deadline of a request around what comes before its generation.

    Yields:
        What tells the seconds that are left; None without a deadline.

    Raises:
        DeadlineExceeded: it has passed.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + (timeout_s or 0.0)
    try:
        async with asyncio.timeout(timeout_s):
            yield lambda: None if timeout_s is None else max(end - loop.time(), _LEAST_S)
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the request was not finished in time",
            f"its deadline of {timeout_s:g} s has passed while its documents were read",
            "Raise timeout_s, or send fewer pages.",
            param="timeout_s",
        ) from error


def room_for_prompt(context: int, answer: int | None) -> int:
    """Tokens that a prompt with documents may have.

    Args:
        context: tokens of prompt and answer together.
        answer: tokens that the request asks for; None leaves it open.
    """
    return context - (answer or min(_ANSWER_TOKENS, context // 4))


def _disarmed(text: str, special: Collection[str]) -> str:
    """A document's text without what the model reads as the end of a message and the like."""
    for token in special:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
