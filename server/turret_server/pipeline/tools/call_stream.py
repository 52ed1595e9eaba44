"""Tells calls from text while a model writes both."""

from __future__ import annotations

from dataclasses import dataclass

from turret_server.pipeline.stops import StopStrings
from turret_server.pipeline.tools.call_object import CallObject, Malformed, is_json
from turret_server.pipeline.tools.calls import ContentDelta, Delta, ToolCallDelta, new_call_id

_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a family of models writes calls: blocks of one or more call objects."""

    open: str  # begins a block
    close: str = ""  # ends a block
    bare: bool = False  # an answer that begins with `{` is a block, too
    separators: str = ""  # characters that may stand between calls outside of a list
    needs_arguments: bool = False  # an object without them is an answer like any other
    short_ids: bool = False


class CallStream:
    """Splits an answer into content and calls, however the answer is cut into pieces.

    A call counts as one when its name is known and its arguments begin. Until then its text is
    held, and what turns out to be no call is content, unchanged. Blanks around calls are dropped;
    texts before and after a call stay on lines of their own.

    Args:
        format: how the model writes calls.
        whole: yield a call only once it is complete and valid JSON, and its text as content
            otherwise. Without it, arguments are passed on as they come, whatever the model then
            makes of them.
    """

    def __init__(self, format: CallFormat, *, whole: bool = False):
        self._format = format
        self._whole = whole
        self._opens = StopStrings([format.open])
        self._closes = StopStrings([format.close]) if format.close else None
        self._state = 0  # of `_opens` in text, of `_closes` in a broken call
        self._held = ""  # text that is not certain yet
        self._rest = ""  # input that is not read yet
        self._mode = self._at_start if format.bare else self._in_text
        self._block = ""  # what was read of a block since its last call: content if none follows
        self._object = CallObject()
        self._in_list = False
        self._announced = False  # the name of the current call has been sent
        self._after_call = False  # blanks that follow are dropped
        self._has_content = False
        self._index = -1  # of the latest call
        self._out: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        """Take the next piece of the answer and return what is certain."""
        self._rest = text
        while self._rest:
            self._mode()
        return self._take()

    def finish(self) -> list[Delta]:
        """Return the rest; call it once, at the end of the answer."""
        if self._mode == self._before_call or (self._mode == self._in_call and not self._announced):
            self._not_a_call()
        if self._mode in (self._in_text, self._at_start):
            self._content(self._held)
        elif self._mode == self._in_broken_call:
            self._arguments(self._held)
        return self._take()

    # Each mode reads some of `_rest`.

    def _at_start(self) -> None:
        text = self._rest.lstrip(_BLANKS)
        self._held += self._rest[: len(self._rest) - len(text)]
        self._rest = text
        if text.startswith("{"):
            self._open_block(self._held)
        elif text:
            self._mode = self._in_text

    def _in_text(self) -> None:
        rest = self._rest
        self._state, end = self._opens.scan(self._state, rest)
        if end is not None:
            text, self._rest = self._held + rest[:end], rest[end:]
            content = text[: -len(self._format.open)].rstrip(_BLANKS)
            self._content(content)
            self._open_block(text[len(content) :])
            return
        self._rest = ""
        if not rest.strip(_BLANKS):  # however many a model writes
            self._held += rest
            return
        text = self._held + rest
        certain = len(text[: len(text) - self._opens.held(self._state)].rstrip(_BLANKS))
        self._content(text[:certain])
        self._held = text[certain:]

    def _before_call(self) -> None:
        text = self._rest.lstrip(_BLANKS)
        self._block += self._rest[: len(self._rest) - len(text)]
        self._rest = text
        if text.startswith("{"):
            self._object, self._announced = CallObject(), False
            self._mode = self._in_call
        elif text.startswith("[") and not self._in_list:
            self._in_list = True
            self._block += "["
            self._rest = text[1:]
        elif text:
            self._not_a_call()

    def _in_call(self) -> None:
        call, text = self._object, self._rest
        try:
            self._rest = text[call.feed(text, 0) :]
            if call.done:
                self._check(call)
        except Malformed:
            self._rest = text[len(call.raw[-1]) :] if not call.done else self._rest
            if not (self._whole or call.done):
                self._pass_on(call)  # what came before the fault would have been, piece by piece
            if self._announced:
                self._state, self._held, self._mode = 0, "", self._in_broken_call
            else:
                self._not_a_call()
            return
        if call.done or not self._whole:
            self._pass_on(call)
        if call.done:
            self._block, self._mode = "", self._after_object

    def _after_object(self) -> None:
        if not self._block:
            self._rest = self._rest.lstrip(_BLANKS)
        if not self._rest:
            return
        self._block, self._rest = self._block + self._rest[0], self._rest[1:]
        seen, close = self._block, self._format.close
        if seen == close:
            self._close_block()
        elif close.startswith(seen):
            pass
        elif self._in_list and seen == "]":
            self._in_list, self._block = False, ""
            if not close:
                self._close_block()
        elif seen in ("," if self._in_list else self._format.separators):
            self._mode = self._before_call
        else:  # text, or another call, without an end of this block
            self._rest = seen + self._rest
            self._close_block()
            if self._format.bare and seen == "{":
                self._open_block("")

    def _in_broken_call(self) -> None:
        """Pass on what the model writes in place of arguments, up to the end of the block."""
        rest, self._rest = self._rest, ""
        if self._closes is None:
            self._arguments(rest)
            return
        self._state, end = self._closes.scan(self._state, rest)
        text = self._held + rest[:end]
        if end is not None:
            self._rest = rest[end:]
            self._arguments(text[: -len(self._format.close)])
            self._close_block()
            return
        certain = len(text) - self._closes.held(self._state)
        self._arguments(text[:certain])
        self._held = text[certain:]

    # Changes of mode.

    def _open_block(self, text: str) -> None:
        self._block, self._held, self._in_list = text, "", False
        self._mode = self._before_call

    def _close_block(self) -> None:
        self._block, self._held, self._in_list = "", "", False
        self._after_call = True
        self._state, self._mode = 0, self._in_text

    def _not_a_call(self) -> None:
        text = self._block
        if self._mode == self._in_call:
            text += "".join(self._object.raw)
        self._state, self._mode = 0, self._in_text
        # Blanks at its end may yet precede a call; everything else is certain.
        content = text.rstrip(_BLANKS)
        self._content(content)
        self._block, self._held = "", text[len(content) :]

    def _check(self, call: CallObject) -> None:
        if self._format.needs_arguments and not call.has_arguments:
            raise Malformed("it has no arguments")
        if self._whole and not is_json("".join(call.raw)):
            raise Malformed("it is not valid JSON")

    # Output.

    def _pass_on(self, call: CallObject) -> None:
        if not self._announced:
            if call.name is None or not (call.has_arguments or call.done):
                return
            self._announced = True
            self._index += 1
            call_id = new_call_id(self._format.short_ids)
            self._out.append(ToolCallDelta(self._index, call_id, call.name))
        self._arguments(call.take_arguments())
        if call.done and not call.has_arguments:
            self._arguments("{}")

    def _arguments(self, text: str) -> None:
        if text:
            self._out.append(ToolCallDelta(self._index, arguments=text))

    def _content(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip(_BLANKS)
            if text and self._has_content:
                text = "\n" + text
        if text:
            self._after_call, self._has_content = False, True
            self._out.append(ContentDelta(text))

    def _take(self) -> list[Delta]:
        out, self._out = self._out, []
        return out
