"""Flags of commands that serve: how documents are read."""

from __future__ import annotations

from typing import Annotated

import typer

_DOCUMENTS = "Documents"

MaxDocumentMib = Annotated[
    int,
    typer.Option(
        min=1,
        help="MiB of documents in a request, beside the rest of its body.",
        rich_help_panel=_DOCUMENTS,
    ),
]
DocumentRemote = Annotated[
    list[str] | None,
    typer.Option(
        help="URL prefix that documents may be fetched from, such as "
        "https://files.example.com; never from a private network. May be repeated. "
        "\\[default: none]",
        rich_help_panel=_DOCUMENTS,
        show_default=False,
    ),
]
DocumentWorkers = Annotated[
    int,
    typer.Option(
        min=0,
        max=256,
        help="Processes that read pictures and PDFs, a page at a time; 0 = half as many as "
        "there are processors, 4 at most.",
        rich_help_panel=_DOCUMENTS,
    ),
]
DocumentPages = Annotated[
    int,
    typer.Option(
        min=1,
        max=100_000,
        help="Pages of all documents of a request.",
        rich_help_panel=_DOCUMENTS,
    ),
]
DocumentMegapixels = Annotated[
    int,
    typer.Option(
        min=1, max=1000, help="Millions of pixels of a picture.", rich_help_panel=_DOCUMENTS
    ),
]
DocumentTimeoutS = Annotated[
    float,
    typer.Option(min=0.1, help="Seconds for one page.", rich_help_panel=_DOCUMENTS),
]
Ocr = Annotated[
    str,
    typer.Option(help="rapidocr, or tesseract if installed.", rich_help_panel=_DOCUMENTS),
]
OcrLanguage = Annotated[
    str,
    typer.Option(help="Of Tesseract, such as eng or eng+deu.", rich_help_panel=_DOCUMENTS),
]
Task = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=TABLE: a way to ask about documents; a table of turret.toml's tasks, as "
        "JSON. May be repeated.",
        rich_help_panel=_DOCUMENTS,
    ),
]
