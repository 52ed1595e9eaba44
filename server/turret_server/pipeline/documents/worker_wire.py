"""What the API process and the processes that read documents tell each other."""

from __future__ import annotations

import msgspec

from turret_server.errors import BadRequest, PayloadTooLarge, TurretError, Unprocessable
from turret_server.pipeline.documents.layout import LayoutOptions, PageText
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.readers import ReadLimits


class Read(msgspec.Struct, frozen=True, tag=True):
    """Read an OCR result: its bytes, and its format where that is known."""

    data: bytes
    format: str | None
    limits: ReadLimits


class LayOut(msgspec.Struct, frozen=True, tag=True):
    """Lay pages out, to at most so many characters in all."""

    pages: list[Page]
    options: LayoutOptions
    max_chars: int


class Pages(msgspec.Struct, frozen=True, tag=True):
    """What was read."""

    pages: list[Page]


class Texts(msgspec.Struct, frozen=True, tag=True):
    """What was laid out."""

    texts: list[PageText]


class Problem(msgspec.Struct, frozen=True, tag=True):
    """Why there is neither; `kind` names the class of the error."""

    kind: str
    what: str
    why: str
    fix: str

    @classmethod
    def of(cls, error: TurretError) -> Problem:
        """The problem that an error tells of."""
        return cls(type(error).__name__, error.what, error.why, error.fix)

    def error(self) -> TurretError:
        """The error, to be raised on this side."""
        return _ERRORS.get(self.kind, Unprocessable)(self.what, self.why, self.fix)


_ERRORS: dict[str, type[TurretError]] = {
    kind.__name__: kind for kind in (BadRequest, Unprocessable, PayloadTooLarge)
}

encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Read | LayOut).decode
decode_reply = msgspec.msgpack.Decoder(Pages | Texts | Problem).decode
