"""Log-probabilities in the shapes of OpenAI's chat, OpenAI's completions and vLLM's prompts.

Scorers such as lm-eval call a token greedy when its logprob *equals* the largest of the position,
so the chosen token is always listed and is the same float everywhere it appears.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turret_server.engine.messages import TokenLogprob
from turret_server.pipeline.detokenizer import Detokenizer
from turret_server.pipeline.tokenizer import Tokenizer

_FLOOR = -9999.0  # JSON has no infinities; vLLM's value for a banned token


def chat_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob], top: int
) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`: one object per token, `top` alternatives in each."""
    return [
        {
            **_spelt(tokenizer, entry.token, entry.logprob),
            **({"fusion_weights": entry.weights} if entry.weights else {}),
            "top_logprobs": [
                _spelt(tokenizer, token, entry.logprob if token == entry.token else logprob)
                for token, logprob in entry.top[:top]
            ],
        }
        for entry in entries
    ]


class CompletionLogprobs:
    """`choices[].logprobs` of text completions: parallel lists that grow with the text.

    Args:
        tokenizer: of the model.
        detokenizer: a fresh stream like the one that makes the text; it gives the offsets.
        top: alternatives per position.
    """

    def __init__(self, tokenizer: Tokenizer, detokenizer: Detokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._top = top
        self._offset = 0
        self._clear()

    def add_prompt(
        self, prompt: Sequence[int], entries: Sequence[TokenLogprob | None] | None, text: str
    ) -> None:
        """Echoed tokens; the first has no probability, for nothing precedes it.

        Args:
            prompt: the tokens.
            entries: of each, None without log-probabilities.
            text: the prompt as it is echoed. Special tokens may stand in it or not, whatever is
                skipped in answers: a template's do, one that the tokenizer put before does not.
        """
        for token, entry in zip(prompt, entries or [None] * len(prompt), strict=True):
            start = self._offset
            self._add(token, entry)
            if self._tokenizer.is_special(token):
                spelt = self._tokenizer.token_text(token)
                self._offset = start + (len(spelt) if text.startswith(spelt, start) else 0)
        self._offset = len(text)

    def add(self, entries: Sequence[TokenLogprob]) -> None:
        """Generated tokens."""
        for entry in entries:
            self._add(entry.token, entry)

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last call."""
        taken = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._alternatives,
            "text_offset": self._offsets,
        }
        if any(self._weights):
            taken["fusion_weights"] = self._weights
        self._clear()
        return taken

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._alternatives: list[dict[str, float] | None] = []
        self._offsets: list[int] = []
        self._weights: list[list[float] | None] = []

    def _add(self, token: int, entry: TokenLogprob | None) -> None:
        self._tokens.append(self._tokenizer.token_text(token))
        self._logprobs.append(None if entry is None else max(entry.logprob, _FLOOR))
        self._alternatives.append(
            None if entry is None else _by_text(self._tokenizer, entry, self._top)
        )
        self._weights.append(None if entry is None else entry.weights or None)
        self._offsets.append(self._offset)
        self._offset += len(self._detokenizer.push([token]))


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None], top: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per position, token id -> logprob, rank and text."""
    positions: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            positions.append(None)
            continue
        ranked = [(token, value, rank) for rank, (token, value) in enumerate(entry.top[:top], 1)]
        ranked = [one for one in ranked if one[0] != entry.token]
        positions.append(
            {
                str(token): {
                    "logprob": max(value, _FLOOR),
                    "rank": rank,
                    "decoded_token": tokenizer.token_text(token),
                }
                for token, value, rank in [(entry.token, entry.logprob, entry.rank), *ranked]
            }
        )
    return positions


def _spelt(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token),
        "logprob": max(logprob, _FLOOR),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _by_text(tokenizer: Tokenizer, entry: TokenLogprob, top: int) -> dict[str, float]:
    """The likeliest tokens by their text, the chosen one always among them.

    Two tokens may read the same. The chosen one keeps the text, so that it is found under what
    `tokens` says; the other is called `token_id:N`, so that it is not lost, and cannot make an
    unlikely choice look like the likeliest.
    """
    chosen = tokenizer.token_text(entry.token)
    found: dict[str, float] = {}
    listed = entry.top[:top]
    if all(token != entry.token for token, _ in listed):
        listed = [*listed, (entry.token, entry.logprob)]
    for token, logprob in listed:
        if token == entry.token:
            found[chosen] = max(entry.logprob, _FLOOR)
            continue
        text = tokenizer.token_text(token)
        if text == chosen or text in found:
            text = f"token_id:{token}"
        found[text] = max(logprob, _FLOOR)
    return found
