"""What the API process and the grammar sandbox tell each other, over a pair of pipes."""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, frozen=True):
    """The first message to the process."""

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: list[int]


class Question(msgspec.Struct, frozen=True):
    """A grammar to try: an llguidance grammar, or GBNF to be made one."""

    grammar: str
    gbnf: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a grammar, and to the setup; `refusal` is None when all is well."""

    refusal: str | None = None
    grammar: str = ""  # as the engine takes it
