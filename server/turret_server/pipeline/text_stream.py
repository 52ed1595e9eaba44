"""The text of an answer while its tokens arrive: whole characters, cut at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from turret_server.pipeline.stops import StopStrings
from turret_server.pipeline.tokenizer import Tokenizer


class TextStream:
    """Turns token ids into text that can be sent at once.

    Everything returned, joined, is `tokenizer.decode` of all ids, cut at the first stop string to
    become complete. No call returns half of a character, or text that a later token could turn
    into (part of) a stop string. The cost per token does not grow with the text.

    Args:
        tokenizer: of the model that writes.
        stop: stop strings, None without any; streams may share them.
        include_stop: keep the stop string in the text.
        skip_special_tokens: leave special tokens (`<|im_end|>`) out of the text.
        continues: the ids continue a text that is shown before them (a completion, as opposed to
            a chat answer): a leading space is part of the text even where `decode`, which takes
            the ids for the beginning of a text, drops it.
        min_tokens: a stop string within so many tokens does not end the answer.
        keep: special tokens that stay in the text nevertheless (the markers of a tool parser).
    """

    __slots__ = (
        "_detokenizer",
        "_held",
        "_include_stop",
        "_state",
        "_stops",
        "_unstoppable",
        "stopped",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: StopStrings | None = None,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        *,
        continues: bool = False,
        min_tokens: int = 0,
        keep: Sequence[str] = (),
    ):
        self._detokenizer = tokenizer.detokenizer(
            skip_special_tokens=skip_special_tokens, continues=continues, keep=keep
        )
        self._stops = stop
        self._include_stop = include_stop
        self._unstoppable = min_tokens  # tokens to come that no stop string ends
        self._state = 0
        self._held = ""  # may be the start of a stop string
        self.stopped: str | None = None  # the stop string found

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens and return the text that is certain; "" after a stop string."""
        if self.stopped is not None:
            return ""
        text = self._detokenizer.push(ids)
        self._unstoppable -= len(ids)
        if self._stops is None or self._unstoppable >= 0:
            return text
        return self._scan(text, self._stops)

    def finish(self) -> str:
        """Return the rest of the text; call it once, when no token will follow."""
        if self.stopped is not None:
            return ""
        text = self._detokenizer.finish()
        if self._stops is not None and self._unstoppable < 0:
            text = self._scan(text, self._stops) + self._held
            self._held = ""
        return text

    def _scan(self, text: str, stops: StopStrings) -> str:
        self._state, end = stops.scan(self._state, text)
        if end is not None:
            self.stopped = stops.found(self._state)
            text, self._held = self._held + text[:end], ""
            return text if self._include_stop else text[: -len(self.stopped)]
        text = self._held + text
        certain = len(text) - stops.held(self._state)
        self._held = text[certain:]
        return text[:certain]
