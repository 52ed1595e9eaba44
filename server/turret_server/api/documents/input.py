"""Documents of a request before anything reads them: where they are, and their bytes."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from turret_server.api.invalid_field import invalid_field
from turret_server.api.schema.chat import Message
from turret_server.api.schema.documents import (
    Document,
    DocumentPart,
    File,
    FilePart,
    ImagePart,
    ImageUrl,
)
from turret_server.errors import BadRequest, Unprocessable

_PARTS = {"document": DocumentPart, "image_url": ImagePart, "file": FilePart}
_WEB = ("http://", "https://")
# A multiple of four; one step holds the interpreter for a millisecond.
_BASE64_STEP = 1 << 20
_BLANKS = (b"\n", b" ", b"\r", b"\t")


@dataclass(frozen=True, slots=True)
class DocumentInput:
    """A document as a request holds it; one of the three sources is given.

    Attributes:
        where: JSON path of the field that holds it.
        text: base64, a data URL, or an OCR result that is text.
        json: an OCR result, as it stood in the body, or parsed.
        url: where it is to be fetched.
        format: of an OCR result, as the request names it.
    """

    where: str
    text: str | None = None
    json: Any = None
    url: str | None = None
    format: str | None = None

    async def data(self) -> bytes:
        """The bytes of a document that is no URL.

        Raises:
            BadRequest: it is neither base64 nor a text that could be an OCR result.
        """
        if self.text is not None:
            text = self.text
            return await asyncio.to_thread(_bytes, text, self.where)
        is_raw = isinstance(self.json, msgspec.Raw)
        return bytes(self.json) if is_raw else msgspec.json.encode(self.json)


def documents_in(messages: Sequence[Message]) -> dict[tuple[int, int], DocumentInput]:
    """The documents of a conversation, by message and part.

    Raises:
        BadRequest: a part that carries a document is malformed, or in a message of the assistant.
        Unprocessable: it names a file that this server was never given.
    """
    found = {}
    for i, message in enumerate(messages):
        if not isinstance(message.content, list):
            continue
        for j, part in enumerate(message.content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _PARTS:
                continue
            where = f"messages[{i}].content[{j}]"
            if message.role == "assistant":
                raise BadRequest(
                    f"'{where}' cannot be read",
                    "an answer of the assistant holds no documents",
                    "Move the document to a message of the user.",
                    param=where,
                )
            try:
                valid = _PARTS[kind].model_validate(part)
            except ValidationError as error:
                raise invalid_field(error.errors()[0], where) from error
            found[i, j] = document_input(getattr(valid, kind), f"{where}.{kind}")
    return found


def document_input(given: Document | ImageUrl | File, where: str) -> DocumentInput:
    """What a valid part, or its twin in another body, holds.

    Raises:
        BadRequest: a file has no data.
        Unprocessable: it names a file that this server was never given.
    """
    if isinstance(given, File):
        if given.file_id is not None:
            raise Unprocessable(
                f"'{where}.file_id' cannot be used",
                "this server stores no files",
                "Send the file itself as file_data.",
                param=f"{where}.file_id",
            )
        if given.file_data is None:
            raise BadRequest(f"'{where}.file_data' is missing", "a file is sent in it", param=where)
        return _from_text(given.file_data, f"{where}.file_data")
    if isinstance(given, ImageUrl):
        return _from_text(given.url, f"{where}.url")
    if given.url is not None:
        return DocumentInput(f"{where}.url", url=given.url)
    if isinstance(given.data, str):
        return _from_text(given.data, f"{where}.data", given.format)
    return DocumentInput(f"{where}.data", json=given.data, format=given.format)


def _from_text(text: str, where: str, format: str | None = None) -> DocumentInput:
    if text[:8].lower().startswith(_WEB):
        return DocumentInput(where, url=text, format=format)
    return DocumentInput(where, text=text, format=format)


def _bytes(text: str, where: str) -> bytes:
    """The bytes that a text stands for.

    What base64 can't hold shows that a text is an OCR result itself: a bracket, a tab.
    """
    head = text[:256].lstrip("\ufeff \t\r\n")
    if head[:5].lower() == "data:":
        return _data_url(text.lstrip(), where)
    if head[:1] in ("<", "{", "[") or "\t" in head:
        return text.encode()
    try:
        return _base64(text)
    except ValueError as error:
        raise BadRequest(
            f"{where!r} cannot be read",
            f"it is neither a data URL, nor base64 ({error}), nor XML, JSON or tab-separated text",
            "Send a file in base64, or an OCR result as it is.",
            param=where,
        ) from error


def _data_url(text: str, where: str) -> bytes:
    comma = text.find(",", 0, 1024)
    if comma < 0 or not text[:comma].lower().endswith(";base64"):
        raise BadRequest(
            f"{where!r} cannot be read",
            "its data URL does not begin like 'data:image/png;base64,'",
            "Send data:TYPE;base64, followed by the file in base64.",
            param=where,
        )
    try:
        return _base64(text[comma + 1 :])
    except ValueError as error:
        raise BadRequest(
            f"{where!r} cannot be read",
            f"what follows 'base64,' is none ({error})",
            "Encode the file as base64, with its padding.",
            param=where,
        ) from error


def _base64(text: str) -> bytes:
    """Decode piece by piece, blanks ignored: `base64` of the shell breaks lines."""
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("it holds other characters") from None
    if any(blank in data for blank in _BLANKS):
        data = b"".join(data.split())
    if not data:
        raise ValueError("it is empty")
    if data.find(b"=", 0, -2) >= 0:
        raise ValueError("there is padding in its middle")
    pieces = range(0, len(data), _BASE64_STEP)
    try:
        return b"".join(
            binascii.a2b_base64(data[at : at + _BASE64_STEP], strict_mode=True) for at in pieces
        )
    except binascii.Error as error:
        raise ValueError(str(error)[:1].lower() + str(error)[1:]) from None
