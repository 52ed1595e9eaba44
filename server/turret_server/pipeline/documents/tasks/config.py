"""Tasks of the configuration.

    [tasks.contract]
    instruction = "The document is a contract under German law."
    directive = "Antworte mit der Klausel, im Wortlaut."
    answer = "span"

A new name starts from the task "question", a built-in one from itself: the table says what differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from turret_server.errors import StartupError
from turret_server.pipeline.documents.tasks.answers import span_answer, text_answer
from turret_server.pipeline.documents.tasks.confidence import scored_answer
from turret_server.pipeline.documents.tasks.docvqa import DOCVQA
from turret_server.pipeline.documents.tasks.free_question import FREE_QUESTION
from turret_server.pipeline.documents.tasks.infographic_vqa import INFOGRAPHIC_VQA
from turret_server.pipeline.documents.tasks.key_values import KEY_VALUES, json_answer
from turret_server.pipeline.documents.tasks.mp_docvqa import MP_DOCVQA, MP_DOCVQA_BY_PAGE
from turret_server.pipeline.documents.tasks.table_csv import TABLE_CSV, csv_answer
from turret_server.pipeline.documents.tasks.task import Answer, Task
from turret_server.pipeline.documents.tasks.template import template_problem

_BUILT_IN = (
    FREE_QUESTION,
    DOCVQA,
    INFOGRAPHIC_VQA,
    MP_DOCVQA,
    MP_DOCVQA_BY_PAGE,
    KEY_VALUES,
    TABLE_CSV,
)
TASKS: Mapping[str, Task] = {task.name: task for task in _BUILT_IN}
PARSERS: Mapping[str, Callable[[str], Answer]] = {
    "text": text_answer,
    "span": span_answer,
    "confidence": scored_answer,
    "json": json_answer,
    "csv": csv_answer,
}

_TEXTS = ("instruction", "directive", "plain", "template", "question")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def load_tasks(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Return the built-in tasks and those of the configuration, by name.

    Args:
        tables: the tables below `[tasks]` of a turret.toml.

    Raises:
        StartupError: names the task, and says what is wrong with it.
    """
    tasks = dict(TASKS)
    for name, table in tables.items():
        try:
            tasks[name] = _task(name, table)
        except ValueError as error:
            raise StartupError(
                f"the task {name!r} cannot be offered",
                str(error),
                "Correct the table; docs/documents.md describes it.",
            ) from None
    return tasks


def _task(name: str, table: Any) -> Task:
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, '-' and '_'")
    if not isinstance(table, Mapping):
        raise ValueError("it is no table")
    if unknown := sorted(table.keys() - {*_TEXTS, "answer"}):
        raise ValueError(f"{unknown[0]!r} is not known; there is {', '.join(_TEXTS)} and answer")
    for key, value in table.items():
        if not isinstance(value, str):
            raise ValueError(f"{key!r} is no text")
    changes: dict[str, Any] = {key: table[key] for key in _TEXTS if key in table}
    if problem := template_problem(changes.get("template", "{document}{question}")):
        raise ValueError(problem)
    if (answer := table.get("answer")) is not None:
        if answer not in PARSERS:
            raise ValueError(f"'answer' is {answer!r}; it is one of {', '.join(PARSERS)}")
        changes["parser"] = PARSERS[answer]
    return replace(TASKS.get(name, FREE_QUESTION), name=name, **changes)
