"""What a document is, and which of its pages and layouts are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.layout import Mode
from turret_server.pipeline.documents.ocr.kinds import kind_of
from turret_server.pipeline.documents.page import Page

_HEAD_BYTES = 512
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")

# What a request or a user names -> the layout. The four modes that LATIN-Prompt compares differ in
# the instruction too, see `tasks.Mode`.
LAYOUTS: Mapping[str, Mode] = {
    "turret": "turret",
    "latin": "latin",
    "plain": "plain",
    "space": "latin",
    "task_instruction": "plain",
    "task_instruction_space": "latin",
}


def is_file(data: bytes) -> bool:
    """Is it a picture, a PDF or anything else that is not text, as OCR results are?"""
    head = data[:_HEAD_BYTES]
    if kind_of(data) is not None or not head:
        return True
    return not head.startswith(_BYTE_ORDER_MARKS) and any(
        byte < 0x20 and byte not in b"\t\n\r\f" for byte in head
    )


def chosen(pages: list[Page], numbers: Sequence[int] | None) -> list[Page]:
    """The pages of these numbers, in their order; all for None.

    Raises:
        BadRequest: there is no such page.
    """
    if numbers is None:
        return pages
    by_number = {page.number: page for page in pages}
    if missing := [number for number in numbers if number not in by_number]:
        raise BadRequest(
            f"the document has no page {missing[0]}",
            f"it has {len(pages)}, from {min(by_number, default=0)} to {max(by_number, default=0)}",
            "Ask for others.",
            param="pages",
        )
    return [by_number[number] for number in dict.fromkeys(numbers)]
