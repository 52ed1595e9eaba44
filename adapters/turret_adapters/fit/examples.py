"""Training data: JSON lines become token ids through the model's own chat template."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turret_adapters.errors import AdapterError, quote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]  # the last message is the assistant's, which is learnt


class FitError(AdapterError):
    """Data or a model that nothing can be fitted with: what, why, fix."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example: `ids[start:]` is the answer, which alone carries the loss."""

    ids: list[int]
    start: int


def read_examples(path: Path) -> list[Conversation]:
    """Read one example per line: {"prompt", "completion"} or {"messages"}.

    Args:
        path: a JSONL file; empty lines are skipped.

    Raises:
        FitError: the file cannot be read, or a line is no example; the message names the line.
    """
    what = f"{quote(str(path))} was not read"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FitError(what, str(error), "Name a JSONL file in UTF-8.") from None
    found: list[Conversation] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_conversation(json.loads(line)))
        except ValueError as error:  # JSONDecodeError is one
            raise FitError(
                what,
                f"line {number} is no example: {error}",
                'Write {"prompt": …, "completion": …} or {"messages": […, {"role": "assistant", '
                '"content": …}]} on every line.',
            ) from None
    return found


def _conversation(value: Any) -> Conversation:
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    if isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str):
        return [
            {"role": "user", "content": value["prompt"]},
            {"role": "assistant", "content": value["completion"]},
        ]
    messages = value.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("it has neither prompt and completion nor two or more messages")
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise ValueError("a message lacks role or content, or they are no text")
    if messages[-1]["role"] != "assistant":
        raise ValueError("its last message is not the assistant's")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Row:
    """Token ids of a conversation, as a server asks for its last answer, with the answer's end.

    Without a chat template the messages are written one after the other.

    Raises:
        FitError: the template writes the answer elsewhere than behind the question.
    """
    if tokenizer.chat_template is None:
        question = "".join(message["content"] for message in conversation[:-1])
        ids = list(tokenizer(question).input_ids)
        answer = conversation[-1]["content"]
        return Row(ids + _ids(tokenizer, answer) + [_end(tokenizer)], len(ids))
    asked = _written(tokenizer, conversation[:-1], ask=True)
    whole = _written(tokenizer, conversation, ask=False)
    if not whole.startswith(asked):
        raise FitError(
            "the examples were not encoded",
            "the model's chat template does not write an answer right behind the question",
            "Use a model without a reasoning template.",
        )
    ids, answer = _ids(tokenizer, asked), _ids(tokenizer, whole[len(asked) :])
    # What the template writes behind the answer's end no model has to learn.
    special = [i for i, token in enumerate(answer) if token in tokenizer.all_special_ids]
    answer = answer[: special[0] + 1] if special else [*answer, _end(tokenizer)]
    return Row(ids + answer, len(ids))


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """A training part and a held-out part, drawn at random; each has at least one row.

    Raises:
        FitError: there are fewer than two rows.
    """
    if len(rows) < 2:
        raise FitError(
            "nothing was fitted",
            f"there are {len(rows)} examples, and some must be held out",
            "Give at least a few dozen.",
        )
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    return shuffled[count:], shuffled[:count]


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> list[list[Row]]:
    """All rows in batches of like length, in a random order, so that little is padding."""
    shuffled = rng.sample(list(rows), len(rows))
    made: list[list[Row]] = []
    for start in range(0, len(shuffled), 8 * size):
        window = sorted(shuffled[start : start + 8 * size], key=lambda row: len(row.ids))
        made += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(made)
    return made


def _written(tokenizer: PreTrainedTokenizerBase, messages: Conversation, *, ask: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert isinstance(text, str)
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise FitError(
            "the examples were not encoded",
            "the tokenizer has no token that ends an answer",
            "Set eos_token in tokenizer_config.json.",
        )
    return tokenizer.eos_token_id
