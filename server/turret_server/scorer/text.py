"""From an instruction and its answers to the token rows that a scorer reads. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as HFTokenizer

from turret_server.errors import StartupError
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Instruction:
    """What was to be answered.

    Attributes:
        text: all of it.
        messages: the same as a conversation, in OpenAI's form.
    """

    text: str
    messages: Sequence[Mapping[str, Any]]

    @classmethod
    def of_text(cls, text: str) -> Instruction:
        """A text that is to be continued, or a query."""
        return cls(text, [{"role": "user", "content": text}])

    @classmethod
    def of_chat(cls, messages: Sequence[Mapping[str, Any]]) -> Instruction:
        """A conversation: its text is that of all messages, with blank lines between."""
        texts = [_text(message.get("content")) for message in messages]
        return cls("\n\n".join(text for text in texts if text), messages)


@dataclass(frozen=True, slots=True)
class Row:
    """One input of a scorer.

    Attributes:
        ids: token ids.
        types: token types, where pairs have them.
        cut: what it says was too long.
    """

    ids: list[int]
    types: list[int] = field(default_factory=list)
    cut: bool = False


class ScorerText(Protocol):
    """How a scorer is told of an answer to an instruction."""

    def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        """One row for each answer; takes milliseconds where texts are long.

        Raises:
            BadRequest: the instruction is no conversation that the scorer's template knows.
        """
        ...


class Pairs:
    """The pair (instruction, answer), as the tokenizer puts pairs together: encoders, Cappy.

    A pair that is too long loses the beginning of its instruction, so that what is next to the
    answer stays; an answer that is too long by itself loses its end. What looks like a special
    token in a text is text: no answer can end the pair.

    Args:
        folder: with the tokenizer.json of the scorer.
        max_length: of a row, in tokens.
        vocab_size: of the scorer.

    Raises:
        StartupError: the tokenizer cannot be read, or does not suit the model.
    """

    def __init__(self, folder: Path, max_length: int, vocab_size: int) -> None:
        path = folder / "tokenizer.json"
        try:
            tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise _unfit(folder, str(error)) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer, self._max_length = tokenizer, max_length
        if max(tokenizer.get_vocab(with_added_tokens=True).values()) >= vocab_size:
            raise _unfit(folder, "it has more tokens than the model")
        sample = tokenizer.encode("a", "a")
        places = sample.sequence_ids
        if 0 not in places or 1 not in places:
            raise _unfit(folder, "it makes no tokens of a letter")
        first, second = places.index(0), places.index(1)
        first_end, second_end = first + places.count(0), second + places.count(1)
        ids, types = sample.ids, sample.type_ids
        self._ids = ids[:first], ids[first_end:second], ids[second_end:]
        self._types = types[:first], types[first_end:second], types[second_end:]
        self._own = types[first], types[second]
        self._room = max_length - sum(map(len, self._ids))

    def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        """See `ScorerText.rows`."""
        texts = [instruction.text, *answers]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        asked, *answered = [encoding.ids for encoding in found]
        return [self._row(asked, ids) for ids in answered]

    def _row(self, asked: list[int], answered: list[int]) -> Row:
        cut = len(asked) + len(answered) > self._room
        answered = answered[: self._room]
        asked = asked[max(0, len(asked) + len(answered) - self._room) :]
        (head, middle, tail), (own, other) = self._ids, self._own
        types = [*self._types[0], *[own] * len(asked), *self._types[1]]
        types += [*[other] * len(answered), *self._types[2]]
        ids = [*head, *asked, *middle, *answered, *tail]
        return Row(ids or [0], types, cut)  # two empty texts: some token must stand there


class Conversations:
    """The conversation with the answer, by the scorer's own chat template: reward models.

    What is too long loses its beginning.

    Args:
        tokenizer: of the scorer.
        max_length: of a row, in tokens.
        vocab_size: of the scorer.

    Raises:
        StartupError: the tokenizer does not suit the model, or its template is not valid.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, vocab_size: int) -> None:
        if tokenizer.vocab_size > vocab_size:
            raise _unfit(tokenizer.path.parent, "it has more tokens than the model")
        self._prompt, self._max_length = ChatPrompt(tokenizer), max_length

    def rows(self, instruction: Instruction, answers: Sequence[str]) -> list[Row]:
        """See `ScorerText.rows`."""
        rows = []
        for answer in answers:
            messages = [*instruction.messages, {"role": "assistant", "content": answer}]
            ids = self._prompt.render(messages, add_generation_prompt=False)
            rows.append(Row(ids[-self._max_length :], cut=len(ids) > self._max_length))
        return rows


def scorer_text(folder: Path, max_length: int, vocab_size: int, *, is_encoder: bool) -> ScorerText:
    """How the scorer in a folder is told of answers.

    Args:
        folder: of the model.
        max_length: of a row, in tokens.
        vocab_size: of the model.
        is_encoder: of the model; decoders with a chat template read conversations.

    Raises:
        StartupError: its tokenizer cannot be read, or does not suit the model.
    """
    if not is_encoder:
        tokenizer = Tokenizer.load(folder)
        if tokenizer.chat_template is not None:
            return Conversations(tokenizer, max_length, vocab_size)
    return Pairs(folder, max_length, vocab_size)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _unfit(folder: Path, why: str) -> StartupError:
    return StartupError(
        f"the tokenizer of {str(folder)!r} cannot be used",
        why,
        "Save the fast tokenizer that belongs to the model: tokenizer.save_pretrained(folder).",
    )
