"""Constrained decoding: which tokens a grammar allows next (llguidance). Imports no torch.

The API process checks every grammar before it sends it (pipeline.constraints), under the same
limits as here, so what arrives compiles in milliseconds. A grammar can still prove too complex
for one of its steps; that ends its own request, never the step of the others.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from turret_server.errors import BadRequest, StartupError, Unprocessable

# Between a third and a half of llguidance's own, after trying what people send and what attackers
# send: a 5,000-value enum, 500 optional fields and 64 tools pass; the worst step found by a
# hostile grammar takes 20 ms instead of 110 ms, or for ever.
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_items_in_row=500,
    max_lexer_states=20_000,  # up to 2 kB each, in every request that uses the grammar
    max_grammar_size=100_000,
    precompute_large_lexemes=False,  # walks the whole vocabulary, without a limit
    verbose_errors=False,  # would put the user's text and schema into messages
)

_CACHED_GRAMMARS = 64


class GrammarCompiler:
    """Makes matchers for one tokenizer; remembers the last grammars. Thread-safe.

    Building one takes 0.3 s and 50 MB for a vocabulary of 49,152.

    Args:
        tokenizer_json: the model's tokenizer.json.
        vocab_size: columns of the logits; ids beyond the tokenizer's own are never allowed.
        eos_token_ids: the ids that may end an answer once it satisfies its grammar.

    Raises:
        StartupError: llguidance cannot read the tokenizer.
    """

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_token_ids: Sequence[int]):
        try:
            text = tokenizer_json.read_text(encoding="utf-8")
            self._tokenizer = _tokenizer(text, vocab_size, list(eos_token_ids) or None)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"structured output is not possible with {str(tokenizer_json)!r}",
                str(error),
                "Use a model whose tokenizer.json is byte-level BPE or SentencePiece.",
            ) from error
        self._mask_words = (vocab_size + 31) // 32
        self._prototypes: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> GrammarMatcher:
        """Return a matcher at the start of `grammar`, an llguidance grammar in its text form.

        The first time, this compiles (milliseconds, without the interpreter lock) and computes the
        first mask; later calls copy that in about 10 us.

        Raises:
            BadRequest: the grammar is invalid or too large.
        """
        with self._lock:
            prototype = self._prototypes.get(grammar)
            if prototype is not None:
                self._prototypes.move_to_end(grammar)
        if prototype is None:
            prototype = self._compile(grammar)
            with self._lock:
                self._prototypes[grammar] = prototype
                while len(self._prototypes) > _CACHED_GRAMMARS:
                    self._prototypes.popitem(last=False)
        with self._lock:
            return GrammarMatcher(prototype.deep_copy(), self._mask_words)

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise BadRequest(
                "the grammar cannot be used",
                _reason(matcher.get_error()),
                "Correct or simplify the grammar, schema or regular expression.",
            )
        return matcher


class GrammarMatcher:
    """How far one answer has come in its grammar."""

    __slots__ = ("_mask_words", "_matcher")

    def __init__(self, matcher: LLMatcher, mask_words: int):
        self._matcher = matcher
        self._mask_words = mask_words

    def fill_mask(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit `i % 32` of word `i // 32` is token `i`.

        End-of-sequence tokens are allowed exactly when the text so far satisfies the grammar.

        Args:
            out: int32 [ceil(vocab_size / 32)], contiguous; overwritten.

        Raises:
            Unprocessable: the grammar became too complex here, or refused an earlier token.
        """
        assert out.dtype == np.int32
        assert out.shape == (self._mask_words,)
        try:
            self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        except ValueError:  # the tokenizer knows more tokens than the model
            mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
            out[:] = mask[: self._mask_words]
        if self._matcher.is_error():
            raise self._error()

    def accept(self, token: int) -> bool:
        """Advance by one token; False, for good, if the grammar does not allow it here."""
        return self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but end-of-sequence could follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _error(self) -> Unprocessable:
        return Unprocessable(
            "the answer could not be kept to its grammar",
            _reason(self._matcher.get_error()),
            "Simplify the schema, regular expression or grammar: fewer alternatives, "
            "shorter repetitions.",
        )


def _tokenizer(text: str, vocab_size: int, eos: list[int] | None) -> LLTokenizer:
    try:
        return LLTokenizer(text, n_vocab=vocab_size, eos_token=eos)
    except ValueError:  # the tokenizer knows more tokens than the model, or is no tokenizer
        return LLTokenizer(text, eos_token=eos)


def _reason(message: str) -> str:
    """Return the line of an llguidance message that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error: "):  # below a regular expression and a pointer into it
            return line.removeprefix("error: ")
    first = lines[0] if lines else ""
    if first.startswith("NoExtension"):
        return "no text satisfies it"
    # What is wrong may stand at either end of it, with the user's own text between.
    return first if len(first) <= 300 else f"{first[:120]} ... {first[-160:]}"
