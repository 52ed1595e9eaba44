"""`turret ask`: a question about documents, put to a running server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turret_server.cli.layout import (
    FilesArgument,
    FormatOption,
    ModeOption,
    OcrOption,
    PageOption,
    ShowOption,
)
from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption

if TYPE_CHECKING:
    from turret_server.cli.conversation import Reply
    from turret_server.cli.remote import Remote

_ANSWER, _READING = "Answers", "Reading"


def ask(
    files: FilesArgument,
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Base, adapter, recipe, or a stack such as a:0.7+b. \\[default: the base]",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="How to ask: docvqa, infographic-vqa, mp-docvqa, mp-docvqa-by-page, key-values, "
            "table-csv, question, or one of the server's own. \\[default: the bare question]",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="Value to find, as JSON, with the task key-values. May be repeated."),
    ] = None,
    mode: ModeOption = "turret",
    page: PageOption = None,
    format: FormatOption = None,
    ocr: OcrOption = "auto",
    cite: Annotated[
        bool, typer.Option("--cite", help="Print which words of the pages the answer is of.")
    ] = False,
    show: ShowOption = False,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer. \\[default: what the context leaves]", show_default=False
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Tokens per second, and time to the first.")
    ] = False,
) -> None:
    """Ask a running server about documents: pictures, PDFs, OCR results.

    The server reads them; the answer comes as it is generated.
      turret ask invoice.png "What is the total?" --cite
    """
    layout: dict[str, Any] = {"mode": mode, "ocr": ocr}
    given = {"task": task, "fields": field, "pages": page, "format": format}
    layout |= {name: value for name, value in given.items() if value}
    if cite or show:
        layout["cite"] = True
    contents = [(file, file.read_bytes()) for file in files]
    parts = [document_part(data) for _, data in contents]
    text = [{"type": "text", "text": question}] if question else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, *text]}],
        "layout": layout,
        "temperature": temperature,
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    asyncio.run(_ask(url, api_key, body, contents, cite=cite, show=show, stats=stats))


def document_part(data: bytes) -> dict[str, Any]:
    """A file as a part of a message: as OpenAI's clients send pictures and PDFs, else ours."""
    from turret_server.pipeline.documents.ocr.kinds import PDF, kind_of

    encoded = base64.b64encode(data).decode()
    kind = kind_of(data)
    if kind == PDF:
        file_data = f"data:application/pdf;base64,{encoded}"
        return {"type": "file", "file": {"filename": "document.pdf", "file_data": file_data}}
    if kind is not None:
        url = f"data:image/{kind.lower()};base64,{encoded}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "document", "document": {"data": encoded}}


async def _ask(
    url: str,
    api_key: str | None,
    body: dict[str, Any],
    contents: Sequence[tuple[Path, bytes]],
    *,
    cite: bool,
    show: bool,
    stats: bool,
) -> None:
    from rich.console import Console

    from turret_server.cli.conversation import Reply
    from turret_server.cli.remote import Remote
    from turret_server.cli.terminal import note, print_end, printable, write_answer

    console = Console(stderr=True)
    async with Remote(url, api_key) as remote:
        body["model"] = body["model"] or (await remote.models())[0]["id"]
        reply = Reply()
        try:
            await reply.receive(remote, body, write_answer)
        finally:
            if reply.text and not reply.text.endswith("\n"):
                write_answer("\n")
        print_end(console, reply, stats=stats)
        if dropped := (reply.layout or {}).get("dropped_pages"):
            names = [f"{contents[one['document']][0].name} page {one['page']}" for one in dropped]
            note(console, f"left out for lack of room: {', '.join(names)}")
        if cite:
            for citation in reply.citations or ():
                name = contents[citation["document"]][0].name
                box = ", ".join(f"{side:g}" for side in citation["box"])
                print(
                    f"{printable(citation['text'])}  {name}, page {citation['page']}, "
                    f"box {box} {citation['unit']}"
                )
        if show:
            print(await _shown(remote, body, contents, reply))


async def _shown(
    remote: Remote, body: dict[str, Any], contents: Sequence[tuple[Path, bytes]], reply: Reply
) -> Path:
    import msgspec

    from turret_server.cli.show_pages import PageView, show_pages
    from turret_server.pipeline.documents.layout import PageText
    from turret_server.pipeline.documents.page import Page, Word

    reading = {
        name: value
        for name, value in body["layout"].items()
        if name in ("mode", "ocr", "pages", "format")
    }
    views = []
    for at, (file, data) in enumerate(contents):
        part = document_part(data)
        kind = part["type"]
        answer = await remote.call(
            "POST", "/v1/layout", {kind: part[kind], **reading, "boxes": True}
        )
        for found in answer["pages"]:
            page = Page(
                [
                    Word(word["text"], msgspec.convert(word["quad"], tuple))
                    for word in found["words"]
                ],
                found["width"],
                found["height"],
                found["page"],
                found["unit"],
            )
            text = PageText(found["text"], [(w["start"], w["end"]) for w in found["words"]])
            cited = {
                word
                for citation in reply.citations or ()
                if (citation["document"], citation["page"]) == (at, found["page"])
                for word in citation["words"]
            }
            title = f"{file.name}, page {found['page']}"
            views.append(PageView(title, data, page, text, cited))
    return show_pages(views)
