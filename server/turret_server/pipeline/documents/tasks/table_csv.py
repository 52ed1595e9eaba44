"""A table of the document, as CSV."""

from __future__ import annotations

import csv
import io
import re

from turret_server.pipeline.documents.tasks.answers import fenced
from turret_server.pipeline.documents.tasks.task import Answer, Task

_RULE = re.compile(r"\|?[\s:|-]*-[\s:|-]*")  # under the head of a Markdown table


def csv_answer(text: str) -> Answer:
    """The rows of the reply, each a list of its cells.

    A code fence is dropped. Besides CSV, rows between semicolons, tabs or the bars of Markdown are
    read; blank rows are left out, and rows of different lengths stay as they are.
    """
    body = fenced(text).strip()
    try:
        rows = _rows(body)
    except csv.Error:  # a cell beyond the module's limit
        return Answer(text)
    if not rows:
        return Answer(text)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return Answer(written.getvalue().removesuffix("\n"), rows)


def _rows(body: str) -> list[list[str]]:
    lines = body.splitlines()
    if lines and all(line.lstrip().startswith("|") for line in lines if line.strip()):
        bars = [line.strip() for line in lines if not _RULE.fullmatch(line.strip())]
        rows = [line.removeprefix("|").removesuffix("|").split("|") for line in bars if line]
    else:
        head = lines[0] if lines else ""
        delimiter = next((mark for mark in ",\t;" if mark in head), ",")
        source = io.StringIO(body, newline="")
        rows = list(csv.reader(source, delimiter=delimiter, skipinitialspace=True))
    stripped = ([cell.strip() for cell in row] for row in rows)
    return [row for row in stripped if any(row)]


_DIRECTIVE = (
    "Reply with the table as CSV and nothing else: one line for each row, first the heads of the "
    'columns, commas between cells, and a cell that contains a comma in double quotes ("1,250").'
)

TABLE_CSV = Task(
    name="table-csv",
    parser=csv_answer,
    instruction=(
        "The document is the text of a page with a table on it. Cells of one column stand below "
        "each other, and cells of one row beside each other."
    ),
    directive=_DIRECTIVE,
    plain=_DIRECTIVE,
    question="What does the main table contain?",
)
