"""Documents in requests: parts of messages that carry them, and how they are read and laid out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field, WithJsonSchema, model_validator

from turret_server.api.schema.base import ClosedPart, Part, RequestBody
from turret_server.errors import BadRequest

MAX_PAGE = 100_000
_MAX_URL_CHARS = 2048

LayoutMode = Literal[
    "turret", "latin", "plain", "space", "task_instruction", "task_instruction_space"
]

_JSON_OR_TEXT = {"type": ["string", "object", "array"]}


def _json_or_text(value: Any) -> bool:
    return isinstance(value, str | dict | list | msgspec.Raw)


class Document(ClosedPart):
    """An OCR result, or a file."""

    data: Annotated[Any, WithJsonSchema(_JSON_OR_TEXT)] = Field(
        None,
        description="An OCR result in JSON, or as text: JSON, XML, TSV; or any file in base64, "
        "also as a data URL.",
    )
    url: str | None = Field(
        None,
        max_length=_MAX_URL_CHARS,
        description="Where the server fetches it, if it was told to fetch from there.",
    )
    format: str | None = Field(
        None, max_length=64, description="Of an OCR result, such as `textract`. Default: detected."
    )
    filename: str | None = Field(None, max_length=256, description="Not used.")

    @model_validator(mode="after")
    def _one_source(self) -> Document:
        if (self.data is None) == (self.url is None):
            raise ValueError("it has either 'data' or 'url'")
        if self.data is not None and not _json_or_text(self.data):
            raise ValueError("'data' is an object, an array or a string")
        return self


class ImageUrl(Part):
    """A picture, as OpenAI's clients send it."""

    url: str = Field(description="A data URL, or a URL that the server may fetch from.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Not used.")


class File(Part):
    """A file, as OpenAI's clients send it."""

    file_data: str | None = Field(None, description="The file in base64, or as a data URL.")
    filename: str | None = Field(None, max_length=256, description="Not used.")
    file_id: str | None = Field(None, max_length=256, description="Refused: nothing is stored.")


class DocumentPart(Part):
    """A part of a message that carries a document."""

    type: Literal["document"]
    document: Document


class ImagePart(Part):
    """A part of a message that carries a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class FilePart(Part):
    """A part of a message that carries a file."""

    type: Literal["file"]
    file: File


CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                    *(part.model_json_schema() for part in (DocumentPart, ImagePart, FilePart)),
                ]
            },
        },
        {"type": "null"},
    ]
}

PageNumber = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class ReadingFields(ClosedPart):
    """How documents are read and laid out."""

    mode: LayoutMode | None = Field(
        None,
        description="`turret` (default): rows, columns and reading order. `latin`: LATIN-Prompt as "
        "published. `plain`: words joined by spaces. With a task also the four modes that "
        "LATIN-Prompt compares: `plain`, `space`, `task_instruction`, `task_instruction_space`.",
    )
    format: str | None = Field(
        None, max_length=64, description="Of all OCR results that name none themselves."
    )
    pages: Annotated[list[PageNumber], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Pages to read, from 1. Default: all."
    )
    ocr: Literal["auto", "always", "never"] | None = Field(
        None,
        description="`auto` (default): pages of a PDF that hold no words, and pictures. `always`: "
        "pages with words too. `never`: the words that a PDF holds, or none.",
    )


class LayoutFields(ReadingFields):
    """How documents are read, laid out, and asked about."""

    task: str | None = Field(
        None, max_length=64, description="A task such as `docvqa`. Default: none, the bare text."
    )
    fields: Annotated[Any, WithJsonSchema({"type": ["object", "array", "null"]})] = Field(
        None,
        description="For `key-values`: names of the values to find, or a JSON schema of an object "
        "of them. The answer follows it.",
    )
    max_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None,
        description="Most tokens of all documents. Default: what the context leaves beside the "
        "answer. Runs of spaces are shortened first, then pages are left out by relevance.",
    )
    order: Literal["given", "edges"] | None = Field(
        None,
        description="`edges`: of several documents, the most relevant stand first and last.",
    )
    cite: bool | None = Field(None, description="Tell which words of the pages the answer is of.")


class LayoutBody(RequestBody, ReadingFields):
    """A document to lay out: one of `document`, `image_url` and `file`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "document": {
                        "data": {
                            "words": ["Total:", "42.00"],
                            "boxes": [[10, 10, 60, 20], [90, 10, 130, 20]],
                        }
                    }
                },
                {"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}, "mode": "latin"},
            ]
        },
    )

    document: Document | None = None
    image_url: ImageUrl | None = None
    file: File | None = None
    boxes: bool | None = Field(None, description="Return the words, their boxes and their spans.")

    @model_validator(mode="after")
    def _one_document(self) -> LayoutBody:
        given = [part for part in (self.document, self.image_url, self.file) if part is not None]
        if len(given) != 1:
            raise BadRequest(
                "'document', 'image_url' and 'file' are alternatives",
                f"{len(given)} of them are given" if given else "none is given",
                "Send one of them.",
                param="document",
            )
        return self
