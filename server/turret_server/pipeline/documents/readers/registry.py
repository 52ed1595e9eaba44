"""Every format, finding the right one, and reading it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec

from turret_server.errors import BadRequest, PayloadTooLarge
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.readers import (
    alto,
    azure,
    azure_read,
    doctr,
    due,
    google,
    hocr,
    paddleocr,
    page_xml,
    rapidocr,
    tesseract_tsv,
    textract,
    words,
)
from turret_server.pipeline.documents.readers.builder import Builder
from turret_server.pipeline.documents.readers.format import Format
from turret_server.pipeline.documents.readers.glimpse import Glimpse
from turret_server.pipeline.documents.readers.limits import ReadLimits

_ALL = (
    tesseract_tsv, hocr, alto, page_xml, textract, azure, azure_read, google, doctr, rapidocr,
    paddleocr, due, words,
)  # fmt: skip
FORMATS: Mapping[str, Format] = MappingProxyType(
    {module.FORMAT.name: module.FORMAT for module in _ALL} | {"docvqa": azure_read.FORMAT}
)
"""Formats by name; "docvqa" is another name of "azure-read"."""

_DEFAULT = ReadLimits()
_MISREAD = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_BOM, _UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def detect(data: bytes) -> str | None:
    """The name of the format that `data` is in, by its content; None if it is none of ours."""
    found = _detect(Glimpse(_plain(data)))
    return None if found is None else found.name


def read(data: bytes, format: str | None = None, limits: ReadLimits = _DEFAULT) -> list[Page]:
    """The pages of an OCR result, which may be empty.

    Args:
        data: the file.
        format: a name in `FORMATS`; None to go by the content.
        limits: what the file may hold.

    Raises:
        BadRequest: the format is unknown, or the data is not as the format says.
        PayloadTooLarge: it holds more than the limits allow.
    """
    _check_size(len(data), limits)
    data = _plain(data)
    chosen = _named(format) or _detected(Glimpse(data))
    content = _parse(chosen, data) if chosen.schemas else data
    return _collect(chosen, content, data, Builder(chosen.title, limits))


def read_value(value: Any, format: str | None = None, limits: ReadLimits = _DEFAULT) -> list[Page]:
    """As `read`, of a parsed JSON value; a string holds a file that is no JSON, such as XML.

    Raises:
        BadRequest: the format is unknown, or the value is not as the format says.
        PayloadTooLarge: it holds more than the limits allow.
    """
    if isinstance(value, str):
        _check_size(len(value), limits)
        # What an XML file says it is encoded in, it is no longer.
        text = _XML_DECLARATION.sub("", value, count=1)
        return read(text.encode("utf-8", "replace"), format, limits)
    chosen = _named(format) or _detected(Glimpse(value))
    if not chosen.schemas:
        raise _mismatch(chosen, value, "it is a JSON value, not a text", "Send it as a string.")
    return _collect(chosen, _convert(chosen, value), value, Builder(chosen.title, limits))


def _collect(chosen: Format, content: Any, source: Any, document: Builder) -> list[Page]:
    try:
        chosen.collect(content, document)
    except BadRequest as error:
        raise _mismatch(chosen, source, error.why, error.fix) from error
    return document.build()


def _parse(chosen: Format, data: bytes) -> Any:
    """The JSON as the first of the format's types that it fits.

    A type that does not fit is given up at its first element: trying costs next to nothing.
    """
    errors: list[msgspec.ValidationError] = []
    for schema in chosen.schemas:
        try:
            return _decoder(schema).decode(data)
        except msgspec.ValidationError as error:
            errors.append(error)
        except _MISREAD as error:
            raise _mismatch(chosen, data, _fault(error)) from error
    raise _mismatch(chosen, data, _furthest(errors)) from errors[0]


def _convert(chosen: Format, value: Any) -> Any:
    errors: list[Exception] = []
    for schema in chosen.schemas:
        try:
            return msgspec.convert(value, schema)
        except _MISREAD as error:
            errors.append(error)
    raise _mismatch(chosen, value, _furthest(errors)) from errors[0]


@cache
def _decoder(schema: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(schema)


def _furthest(errors: Sequence[Exception]) -> str:
    """What is wrong by the type that fitted best."""
    return max((_fault(error) for error in errors), key=lambda text: len(text.partition("$")[2]))


def _fault(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _detect(content: Glimpse) -> Format | None:
    for chosen in FORMATS.values():
        if chosen.fits(content):
            return chosen
    return None


def _detected(content: Glimpse) -> Format:
    found = _detect(content)
    if found is None:
        raise BadRequest(
            "the format of the OCR result is not recognised",
            content.fault or "its content looks like none that is known",
            f"Name it: one of {', '.join(FORMATS)}.",
        )
    return found


def _named(format: str | None) -> Format | None:
    if format is None:
        return None
    if format not in FORMATS:
        raise BadRequest(
            f"there is no OCR format {format[:40]!r}",
            "",
            f"Name one of {', '.join(FORMATS)}, or none, to have it detected.",
        )
    return FORMATS[format]


def _mismatch(chosen: Format, source: Any, why: str, fix: str = "") -> BadRequest:
    """The error for content that is not of the format; it names what the content is instead."""
    what = f"the OCR result cannot be read as {chosen.title}"
    found = _detect(Glimpse(source))
    if found is None or found is chosen:
        return BadRequest(what, why, fix or "Send the result as the tool wrote it.")
    return BadRequest(
        what, f"it looks like {found.title}: {why}", f"Name {found.name!r} as its format, or none."
    )


def _check_size(size: int, limits: ReadLimits) -> None:
    if size > limits.max_bytes:
        raise PayloadTooLarge(
            "the OCR result is too large",
            f"{size} bytes of at most {limits.max_bytes}",
            "Send fewer pages at once, or raise the limit in the server's settings.",
        )


def _plain(data: bytes) -> bytes:
    """JSON and text in UTF-8 without a byte order mark; XML says itself what it is in."""
    if data.startswith(_UTF_16):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError:
            return data
        return data if text.lstrip().startswith("<") else text.encode("utf-8", "replace")
    return data.removeprefix(_BOM)
