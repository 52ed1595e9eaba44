"""A conversation with a served model: what was said, how to ask on, and how fast answers came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from turret_server.cli.remote import Remote


@dataclass(slots=True)
class Reply:
    """One answer while it arrives; what is here stays when the stream is interrupted.

    Attributes:
        text: so far.
        num_tokens: as the server counts them; chunks with text until it says.
        num_prompt_tokens: 0 until the server says.
        finish_reason: None until the end.
        citations: words of documents that it rests on; None unless asked for.
        layout: what the server says of the documents; None without any.
        started_s, first_s, last_s: of the request, its first and its last text, on one clock.
    """

    text: str = ""
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    finish_reason: str | None = None
    citations: list[dict[str, Any]] | None = None
    layout: dict[str, Any] | None = None
    started_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    last_s: float = 0.0

    async def receive(
        self, remote: Remote, body: dict[str, Any], write: Callable[[str], object]
    ) -> None:
        """Ask, and hand each piece of text to `write` as it arrives.

        Raises:
            RemoteError: the server refused, or failed on the way.
        """
        async with aclosing(remote.stream_chat(body)) as chunks:
            async for chunk in chunks:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError  # whoever swallowed it on the way: Ctrl-C counts
                self.layout = chunk.layout or self.layout
                for choice in chunk.choices:
                    self.finish_reason = choice.finish_reason or self.finish_reason
                    if choice.delta is None:
                        continue
                    self.citations = choice.delta.citations or self.citations
                    if choice.delta.content:
                        self._take(choice.delta.content)
                        write(choice.delta.content)
                if chunk.usage is not None:
                    self.num_prompt_tokens = chunk.usage.prompt_tokens
                    self.num_tokens = chunk.usage.completion_tokens

    def stats(self) -> str:
        """Tokens, their rate after the first, and the time to the first, as the user saw them."""
        parts = [f"{self.num_tokens} tokens"]
        if self.first_s is not None:
            if self.num_tokens > 1 and self.last_s > self.first_s:
                rate = (self.num_tokens - 1) / (self.last_s - self.first_s)
                parts.append(f"{rate:.1f} tokens/s")
            parts.append(f"first after {(self.first_s - self.started_s) * 1000:.0f} ms")
        if self.num_prompt_tokens:
            parts.append(f"prompt {self.num_prompt_tokens} tokens")
        return " · ".join(parts)

    def _take(self, text: str) -> None:
        self.last_s = time.perf_counter()
        if self.first_s is None:
            self.first_s = self.last_s
        self.text += text
        self.num_tokens += 1


@dataclass(slots=True)
class Conversation:
    """What was said so far.

    Attributes:
        model: whom to ask next; earlier answers may be of others.
        system: the first message, if any.
        sampling: further fields of each request, such as temperature.
        messages: questions and answers in turn.
    """

    model: str
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self, question: str | None = None) -> dict[str, Any]:
        """The body of a chat completion request: all that was said, and a question."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [{"role": "user", "content": question}] if question is not None else []
        return {
            "model": self.model,
            "messages": [*system, *self.messages, *asked],
            **self.sampling,
        }

    def add(self, question: str, answer: str) -> None:
        """Remember a question and its answer."""
        self.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
