"""Token ids to text, one token at a time, as `decode` of a tokenizer.json gives it for all.

The decoders of the Llama family come in two shapes. Byte-level BPE (GPT-2, SmolLM, Qwen, Llama 3)
spells every token in bytes, and the text is their UTF-8. SentencePiece (Llama 2, Mistral, Yi)
spells tokens in text with `▁` for a space, single bytes as `<0x0A>`, and drops one space at the
start. Both need to look at a token once, so a stream costs the same per token at any length.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from turret_server.errors import StartupError

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRules:
    """The `decoder` of a tokenizer.json, reduced to what can be applied left to right."""

    byte_level: bool = False
    replace: tuple[tuple[str, str], ...] = ()  # (old, new) in each token's text
    byte_fallback: bool = False  # `<0x0A>` is a byte
    replace_after: tuple[tuple[str, str], ...] = ()  # as `replace`, after bytes became text
    drop_in_first: str = ""  # vanishes from the first token (Metaspace)
    strip: str = ""  # a character dropped from the start of the text ...
    strip_count: int = 0  # ... at most this often


class Detokenizer(Protocol):
    """The state of one stream of tokens."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that `ids` complete; unknown ids have none."""
        ...

    def finish(self) -> str:
        """Return what was held back: an incomplete character becomes U+FFFD."""
        ...


def read_rules(decoder: Mapping[str, Any] | None) -> DecodeRules:
    """Read the `decoder` object of a tokenizer.json.

    Raises:
        StartupError: A decoder, or an order of decoders, that the Llama family does not use.
    """
    if decoder is None:
        raise _unsupported("it names no decoder")
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return DecodeRules(byte_level=True)

    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    fields: dict[str, Any] = {}
    for at, step in enumerate(steps):
        replacements = after if "byte_fallback" in fields else before
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                len(old) == 1 or "Fuse" not in kinds[:at]
            ):
                replacements.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark)} if "Fuse" not in kinds[:at]:
                replacements.append((mark, " "))
                # Older files say `add_prefix_space`, newer ones `prepend_scheme`.
                scheme = step.get("prepend_scheme", "always")
                if scheme != "never" and step.get("add_prefix_space", True):
                    fields["drop_in_first"] = mark
            case {"type": "ByteFallback"} if "Fuse" not in kinds[:at]:
                fields["byte_fallback"] = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": str(char), "start": int(count), "stop": 0} if (
                "Fuse" in kinds[:at] and "strip" not in fields
            ):
                fields |= {"strip": char, "strip_count": count}
            case _:
                raise _unsupported(f"its decoder is {' + '.join(map(str, kinds))}")
    return DecodeRules(replace=tuple(before), replace_after=tuple(after), **fields)


def _unsupported(why: str) -> StartupError:
    return StartupError(
        "tokenizer.json cannot be served",
        why,
        "Supported are ByteLevel, and Replace, Metaspace, ByteFallback, Fuse and Strip in the "
        "order that Llama and Mistral use.",
    )


class Pieces(dict[int, Any]):
    """What each token contributes, found on first use: a vocabulary is large, a text is not.

    A piece is `bytes` for byte-level tokenizers; otherwise text, or an `int` for a fallback byte.
    Unknown and skipped ids give the empty piece.
    """

    def __init__(
        self, rules: DecodeRules, id_to_token: Callable[[int], str | None], skip: frozenset[int]
    ):
        super().__init__()
        self.rules = rules
        self.id_to_token = id_to_token
        self.skip = skip
        self.empty: Any = b"" if rules.byte_level else None

    def __missing__(self, token_id: int) -> Any:
        token = self.id_to_token(token_id)
        if token is None:
            return self.empty  # not remembered: the caller's ids may be any numbers
        piece = self.empty if token_id in self.skip else piece_of(token, self.rules)
        self[token_id] = piece
        return piece


def piece_of(token: str, rules: DecodeRules) -> bytes | str | int:
    """Return what one token of the vocabulary contributes to a text."""
    if rules.byte_level:
        try:
            return bytes([_BYTE_OF_CHAR[char] for char in token])
        except KeyError:  # an added token, spelled as text
            return token.encode()
    for old, new in rules.replace:
        token = token.replace(old, new)
    if rules.byte_fallback and len(token) == 6 and token.startswith("<0x") and token[5] == ">":
        try:
            return int(token[3:5], 16)
        except ValueError:
            pass
    return _replaced(token, rules)


def _replaced(text: str, rules: DecodeRules) -> str:
    for old, new in rules.replace_after:
        text = text.replace(old, new)
    return text


class ByteLevelDetokenizer:
    """Bytes to text; a character appears with its last byte."""

    __slots__ = ("_pieces", "_utf8")

    def __init__(self, pieces: Pieces):
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Return the characters that `ids` complete."""
        pieces = self._pieces
        if len(ids) == 1:
            return self._utf8.decode(pieces[ids[0]])
        return self._utf8.decode(b"".join([pieces[i] for i in ids]))

    def finish(self) -> str:
        """Return U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", True)


class SentencePieceDetokenizer:
    """Pieces and runs of fallback bytes to text.

    A run of bytes is held until a token of another sort ends it: in `decode`, one bad byte turns
    every byte of its run into U+FFFD, so nothing of a run is certain before.
    """

    __slots__ = ("_at_start", "_pieces", "_run", "_strip_left")

    def __init__(self, pieces: Pieces, *, continues: bool):
        self._pieces = pieces
        self._run = bytearray()
        self._at_start = bool(pieces.rules.drop_in_first) and not continues
        self._strip_left = 0 if continues else pieces.rules.strip_count

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that `ids` complete."""
        pieces, out = self._pieces, ""
        for token_id in ids:
            piece = pieces[token_id]
            if piece is None:
                continue
            if type(piece) is int:
                self._run.append(piece)
                continue
            if self._run:
                out += self._end_run()
            if self._at_start:
                piece = self._first(token_id)
            out += piece
        return self._strip(out) if self._strip_left and out else out

    def finish(self) -> str:
        """Return the text of a run of bytes that nothing ended."""
        out = self._end_run() if self._run else ""
        return self._strip(out) if self._strip_left and out else out

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        rules = self._pieces.rules
        try:
            text = run.decode()
        except UnicodeDecodeError:
            text = REPLACEMENT * len(run)
        if self._at_start:
            self._at_start = False
            text = text.replace(rules.drop_in_first, "")
        return _replaced(text, rules)

    def _first(self, token_id: int) -> str:
        self._at_start = False
        rules = self._pieces.rules
        token = (self._pieces.id_to_token(token_id) or "").replace(rules.drop_in_first, "")
        piece = piece_of(token, rules)
        return piece if isinstance(piece, str) else token

    def _strip(self, text: str) -> str:
        char = self._pieces.rules.strip
        cut = 0
        while cut < min(self._strip_left, len(text)) and text[cut] == char:
            cut += 1
        self._strip_left = self._strip_left - cut if cut == len(text) else 0
        return text[cut:]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
