"""Pages put into the messages of a conversation, where the parts stood that carried them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from turret_server.pipeline.conversation import part_text
from turret_server.pipeline.documents.layout import PageText
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.retrieval import Order, ordered
from turret_server.pipeline.documents.tasks import Mode, Task, render

Place = tuple[int, int]  # a message, and a part of it


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page on its way into a prompt.

    Attributes:
        place: where its document stands.
        document: number of the document in the request, from 0.
        of: pages that the document has.
        page: as it was read.
        layout: as it was laid out.
        text: as it is shown, shorter than its layout where that does not fit.
    """

    place: Place
    document: int
    of: int
    page: Page
    layout: PageText
    text: str


@dataclass(frozen=True, slots=True)
class Framing:
    """How documents and questions stand together.

    Attributes:
        places: of all documents, the empty ones too.
        task: whose template is filled; None for a plain frame.
        mode: of the template.
        fields: what the task asks for, beside the question.
    """

    places: Collection[Place]
    task: Task | None = None
    mode: Mode = Mode.TASK_INSTRUCTION_SPACE
    fields: str = ""


def question_of(messages: Sequence[Mapping[str, Any]], places: Collection[Place]) -> str:
    """The text of the last message of the user: what pages may be relevant to.

    Raises:
        BadRequest: a part of it is neither a document nor text.
    """
    for at in reversed(range(len(messages))):
        if messages[at]["role"] == "user":
            return "\n".join(_texts(messages[at], at, places).values())
    return ""


def in_order(sheets: Sequence[Sheet], question: str, order: Order) -> list[Sheet]:
    """The pages, the documents of each message in the order that `ordered` finds."""
    out: list[Sheet] = []
    for _, message in groupby(sheets, key=lambda sheet: sheet.place[0]):
        documents = [list(pages) for _, pages in groupby(message, key=lambda s: s.document)]
        texts = ["\n".join(sheet.text for sheet in pages) for pages in documents]
        for pages, at in zip(documents, ordered(texts, question, order), strict=True):
            out += [replace(sheet, place=pages[0].place) for sheet in documents[at]]
    return out


def with_pages(
    messages: Sequence[Mapping[str, Any]], sheets: Sequence[Sheet], framing: Framing
) -> list[dict[str, Any]]:
    """Return the messages as text.

    Without a task, a document becomes `Document:` and its text in its place, and the last text of
    its message a `Question:`. With a task, the documents and the texts of a message fill its
    template.

    Args:
        messages: plain JSON values; not changed.
        sheets: pages in the order they are to be shown; those of a document are together.
        framing: how.

    Raises:
        BadRequest: a part of a message is neither a document nor text, or a task has no question.
    """
    out = []
    for at, message in enumerate(messages):
        if all(place[0] != at for place in framing.places):
            out.append(dict(message))
            continue
        shown = [sheet for sheet in sheets if sheet.place[0] == at]
        texts = _texts(message, at, framing.places)
        if framing.task is None:
            content = _plain(shown, texts)
        else:
            question = "\n".join(text for text in (*texts.values(), framing.fields) if text)
            content = render(
                framing.task,
                [sheet.text for sheet in shown],
                question,
                mode=framing.mode,
                labels=_labels(shown),
            )
        out.append({**message, "content": content})
    return out


def _texts(message: Mapping[str, Any], at: int, places: Collection[Place]) -> dict[int, str]:
    """The parts of a message that are text, by their position."""
    content = message.get("content")
    if not isinstance(content, list):
        return {0: content} if isinstance(content, str) else {}
    return {
        position: part_text(part, f"messages[{at}].content[{position}]")
        for position, part in enumerate(content)
        if (at, position) not in places
    }


def _plain(sheets: Sequence[Sheet], texts: Mapping[int, str]) -> str:
    blocks = dict(texts)
    if texts:
        last = max(texts)
        blocks[last] = f"Question: {texts[last]}"
    for (_, position), group in groupby(sheets, key=lambda sheet: sheet.place):
        pages = list(group)
        name = f"Document {pages[0].document + 1}" if _several(sheets) else "Document"
        shown = [f"[Page {s.page.number}]\n{s.text}" if s.of > 1 else s.text for s in pages]
        blocks[position] = f"{name}:\n" + "\n\n".join(shown)
    return "\n\n".join(blocks[position] for position in sorted(blocks))


def _several(sheets: Sequence[Sheet]) -> bool:
    return len({sheet.document for sheet in sheets}) > 1


def _labels(sheets: Sequence[Sheet]) -> list[str] | None:
    """What tells pages of a template apart; None where there is one page and no other."""
    if len(sheets) == 1 and sheets[0].of == 1:
        return None
    if not _several(sheets):
        return [f"Page {sheet.page.number}" for sheet in sheets]
    return [
        f"Document {sheet.document + 1}" + (f", page {sheet.page.number}" if sheet.of > 1 else "")
        for sheet in sheets
    ]
