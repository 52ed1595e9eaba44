"""Text as tokens that are equal where people would call them the same.

Case, punctuation, currency signs and compatibility forms do not count, and numbers are compared as
numbers: "$1,234.50", "1.234,50 €" and "1234.5" are one token. One comma or point before exactly
three digits groups them, for that is what it does on most pages: "1.234" is 1234.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from turret_server.pipeline.documents.relevance import UNSPACED

CURRENCY = "$€£¥₹₩₽"
_LETTER = rf"[^\W_{UNSPACED}]"  # or a digit
_TOKEN = re.compile(
    # A number, with a unit of up to three letters behind it. "INV2024" and "12B7" are names.
    rf"((?:(?<![\w)\]])[-−][{CURRENCY}]?|(?<!{_LETTER}))(?:(?<![^\s{CURRENCY}−-])\.)?"
    rf"\d++(?:[.,'’\u00a0\u2009\u202f]\d++)*(?=[{UNSPACED}]|[^\W\d_{UNSPACED}]{{0,3}}(?!{_LETTER})))"
    rf"|[{UNSPACED}]"
    rf"|{_LETTER}+(?:[\u0300-\u036f]+{_LETTER}*)*"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_DIGITS = re.compile(r"\d+")
_GROUPED = re.compile(
    r"([1-9]\d{0,2}(?:([.,'’\u00a0\u2009\u202f])\d{3})(?:\2\d{3})*)(?:(?!\2)[.,](\d+))?"
    r"|([1-9]\d?(?:,\d{2})+,\d{3})(?:\.(\d+))?"  # lakh and crore
)
_DECIMAL = re.compile(r"(\d*)[.,](\d+)")


class Token(NamedTuple):
    """A token: its key, equal for equal tokens, and its start and end in the text."""

    key: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a text. Linear."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if match.lastindex is None:
            tokens.append(Token(fold(match[0]), start, end))
        elif match[0].isdecimal():
            tokens.append(Token(_ascii_digits(match[0]), start, end))
        elif (number := number_key(match[0])) is not None:
            tokens.append(Token(number, start, end))
        else:  # a date, a version
            tokens += [
                Token(_ascii_digits(part[0]), start + part.start(), start + part.end())
                for part in _DIGITS.finditer(match[0])
            ]
    return tokens


def fold(word: str) -> str:
    """Return a word's key."""
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).casefold()


def number_key(text: str) -> str | None:
    """Return the key of a number as people write it; None if it isn't one.

    Zeros at the end of the fraction do not count, those before a number do: "007" is a name.
    """
    sign = "-" if text[0] in "-−" else ""
    body = text.lstrip(f"-−{CURRENCY}")
    if body.isdecimal():
        return sign + _ascii_digits(body)
    if match := _GROUPED.fullmatch(body):
        whole = "".join(_DIGITS.findall(match[1] or match[4]))
        fraction = match[3] or match[5] or ""
    elif match := _DECIMAL.fullmatch(body):
        whole, fraction = match[1] or "0", match[2]
    else:
        return None
    fraction = _ascii_digits(fraction).rstrip("0")
    return sign + _ascii_digits(whole) + ("." + fraction if fraction else "")


def is_number(key: str) -> bool:
    """Whether a key is that of a number."""
    return key[-1].isdecimal() and key.lstrip("-")[0].isdecimal()


def weight(key: str) -> int:
    """How much a token says, in letters: a character that is a word by itself says more."""
    return 3 if _UNSPACED.match(key) else len(key)


def _ascii_digits(digits: str) -> str:
    if digits.isascii():
        return digits
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)
