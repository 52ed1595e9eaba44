"""Values for given keys, as a JSON object."""

from __future__ import annotations

import json
from typing import NoReturn

from turret_server.pipeline.documents.tasks.answers import fenced
from turret_server.pipeline.documents.tasks.task import Answer, Task

_MAX_STARTS = 16  # braces in the words before the object


def json_answer(text: str) -> Answer:
    """The first JSON object of the reply; a code fence and words around it are dropped."""
    body = fenced(text)
    start = body.find("{")
    for _ in range(_MAX_STARTS):
        if start < 0:
            break
        try:
            value, end = _DECODER.raw_decode(body, start)
        except (ValueError, RecursionError):
            start = body.find("{", start + 1)
        else:
            return Answer(body[start:end], value)
    return Answer(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_DIRECTIVE = (
    "Reply with one JSON object that has these keys, and nothing else. Copy the values from the "
    "document as they stand there; the value is null where the document has none."
)

KEY_VALUES = Task(
    name="key-values",
    parser=json_answer,
    instruction=(
        "The document is the text of a form, an invoice or the like. Values usually stand to the "
        "right of what names them, or below it."
    ),
    directive=_DIRECTIVE,
    plain=_DIRECTIVE,
    takes_fields=True,
)
