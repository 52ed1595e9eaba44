"""`turret layout`: documents as text, without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from turret_server.errors import BadRequest, TurretError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from turret_server.pipeline.documents.layout import PageText
    from turret_server.pipeline.documents.page import Page

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Pictures, PDFs and OCR results (Textract, hOCR, ALTO, …).",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
ModeOption = Annotated[
    str,
    typer.Option(
        "--mode",
        help="turret: rows, columns and reading order; latin: LATIN-Prompt as published; plain: "
        "words joined by spaces.",
    ),
]
PageOption = Annotated[
    list[int] | None,
    typer.Option("--page", "-p", min=1, help="Page to read, from 1. May be repeated."),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Of OCR results, such as textract. \\[default: detected]",
        show_default=False,
    ),
]
OcrOption = Annotated[
    str,
    typer.Option(
        "--ocr",
        help="auto: for pages of a PDF that hold no words; always; never.",
    ),
]
ShowOption = Annotated[
    bool,
    typer.Option(
        "--show",
        help="Write a web page with the pages, their words' boxes and their text, print its path.",
    ),
]


def layout(
    files: FilesArgument,
    mode: ModeOption = "turret",
    page: PageOption = None,
    format: FormatOption = None,
    ocr: OcrOption = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Print pages with words and boxes as JSON.")
    ] = False,
    show: ShowOption = False,
) -> None:
    """Lay documents out as text: what a model gets to read of them. Needs no server.

    The text of a scan comes from OCR here; an OCR result brings its own.
    """
    import sys

    import msgspec

    from turret_server.cli.show_pages import PageView, show_pages
    from turret_server.cli.terminal import write_answer
    from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
    from turret_server.pipeline.documents.sources import LAYOUTS

    if mode not in LAYOUTS:
        raise BadRequest(f"the mode {mode!r} is not known", f"known are {', '.join(LAYOUTS)}")
    options = LayoutOptions(mode=LAYOUTS[mode])
    documents = asyncio.run(_read(files, format, ocr, page))
    laid_out = [
        (file, data, one, lay_out(one, options))
        for file, (data, pages) in zip(files, documents, strict=True)
        for one in pages
    ]
    several = len(laid_out) > 1
    if show:
        views = [
            PageView(f"{file.name}, page {one.number}", data, one, text)
            for file, data, one, text in laid_out
        ]
        print(show_pages(views))
    elif json:
        found = [_json(file, one, text) for file, _, one, text in laid_out]
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    else:
        for file, _, one, text in laid_out:
            if several:
                write_answer(f"--- {file.name}, page {one.number} ---\n")
            write_answer(text.text + "\n")


async def _read(
    files: Sequence[Path], format: str | None, ocr: str, numbers: Sequence[int] | None
) -> list[tuple[bytes, list[Page]]]:
    from rich.console import Console
    from rich.progress import Progress

    from turret_server.pipeline.documents.ocr import PicturePool, PictureSettings
    from turret_server.pipeline.documents.readers import read
    from turret_server.pipeline.documents.sources import chosen, is_file

    # One's own files: what a server must refuse is merely slow here.
    pool = PicturePool(PictureSettings(max_pages=10_000, document_timeout_s=86_400.0))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        try:
            documents = []
            for file in files:
                data = file.read_bytes()
                try:
                    if is_file(data):
                        pages = await pool.read(
                            data,
                            ocr=cast(Any, ocr),
                            pages=numbers,
                            progress=_bar(progress, file.name),
                        )
                    else:
                        pages = chosen(read(data, format), numbers)
                except TurretError as error:
                    error.what = f"{str(file)!r}: {error.what}"
                    raise
                documents.append((data, pages))
            return documents
        finally:
            await pool.close()


def _bar(progress: Progress, name: str) -> Any:
    task = progress.add_task(name, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def _json(file: Path, page: Page, text: PageText) -> dict[str, Any]:
    return {
        "file": str(file),
        "page": page.number,
        "width": page.width,
        "height": page.height,
        "unit": page.unit,
        "text": text.text,
        "words": [
            {"text": word.text, "quad": word.quad, "start": start, "end": end}
            for word, (start, end) in zip(page.words, text.spans, strict=True)
        ],
    }
