"""Prompt texts of a wanted length, in words or in exact tokens of a given tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from turret_server.errors import BadRequest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

# Common, short English words: most tokenizers give each one token, so that counts in words and
# counts in tokens stay close.
_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one
had by word but not what all were we when your can said there use an each which she do how their
if will up other about out many then them these so some her would make like him into time has
look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know
place year live me back give most very after thing our just name good sentence man think say
great where help through much before line right too mean old any same tell boy follow came want
show also around form three small set put end does another well large must big even such
because turn here why ask went men read need land different home us move try kind hand picture
again change off play spell air away animal house point page letter mother answer found study
still learn should world
"""
_WORDS = tuple(_TEXT.split())


class PromptSource(Protocol):
    """Makes prompts of a wanted length."""

    def make(self, length: int, rng: np.random.Generator) -> str:
        """Return a text of `length` units, drawn from `rng`."""
        ...


class WordPrompts:
    """Prompts counted in words."""

    def make(self, length: int, rng: np.random.Generator) -> str:
        """Return `length` words separated by spaces."""
        return " ".join(_draw(_WORDS, length, rng))


class TokenPrompts:
    """Prompts of an exact number of tokens, special tokens of the server not counted.

    Args:
        tokenizer_json: a Hugging Face `tokenizer.json`.

    Raises:
        BadRequest: the file cannot be read, or gives none of our words a single token.
    """

    def __init__(self, tokenizer_json: Path):
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # tokenizers raises bare Exception
            raise BadRequest(
                f"Tokenizer {str(tokenizer_json)!r} not loaded",
                str(error),
                "Give the path of a Hugging Face tokenizer.json",
            ) from error
        # A word is usable when it adds exactly one token to a running text.
        base = self._count("the the")
        self._words = tuple(word for word in _WORDS if self._count(f"the the {word}") == base + 1)
        if not self._words:
            raise BadRequest(
                f"Tokenizer {str(tokenizer_json)!r} cannot make prompts of exact length",
                "none of the built-in English words is a single token in it",
                "Use --prompt-words, or a --trace with prompts of your own",
            )

    def make(self, length: int, rng: np.random.Generator) -> str:
        """Return a text that encodes to exactly `length` tokens.

        Raises:
            BadRequest: no text of that length was found.
        """
        words = _draw(self._words, length, rng)
        for _ in range(8):  # one word is one token, but for the first: settles in a step or two
            excess = self._count(" ".join(words)) - length
            if excess == 0:
                return " ".join(words)
            words = words[:-excess] if excess > 0 else words + _draw(self._words, -excess, rng)
        raise BadRequest(
            f"No prompt of exactly {length} tokens found",
            "this tokenizer splits words depending on their neighbours",
            "Use --prompt-words",
        )

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _draw(words: tuple[str, ...], n: int, rng: np.random.Generator) -> list[str]:
    return [words[i] for i in rng.integers(0, len(words), n)]
