"""A task: how a question about a document is put to the model, and how its reply is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.tasks.template import SKELETON, cue, fill

PLAIN_DIRECTIVE = "Take the answer to the question directly from the document."


class Mode(StrEnum):
    """The ablation modes of LATIN-Prompt; the last is the method itself."""

    PLAIN = "plain"
    SPACE = "space"
    TASK_INSTRUCTION = "task_instruction"
    TASK_INSTRUCTION_SPACE = "task_instruction_space"

    @property
    def has_layout(self) -> bool:
        """Pages are laid out; otherwise their words are joined by single spaces."""
        return self in (Mode.SPACE, Mode.TASK_INSTRUCTION_SPACE)

    @property
    def has_instruction(self) -> bool:
        """The prompt says what the task is."""
        return self in (Mode.TASK_INSTRUCTION, Mode.TASK_INSTRUCTION_SPACE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, read.

    Attributes:
        text: without what surrounds the answer; of JSON, its text; of CSV, the rows written anew.
        value: what JSON comes to, or a table's rows; None if the reply is neither.
        confidence: 0 to 100, where the task asks for it and the reply gives it.
    """

    text: str
    value: Any = None
    confidence: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question.

    Attributes:
        name: as requests name it.
        parser: reads a reply, stripped of white space and of an echo of the template's last line.
        instruction: says what the document is and what answers look like; before the document.
        directive: says how to reply; after the question.
        plain: the directive of the modes without an instruction.
        template: see `template`.
        question: asked where a request asks nothing; if empty, it must.
        by_page: asked of each page by itself; `confidence.best` chooses among the answers.
        takes_fields: the question is made of the fields to find, see `fields`.
    """

    name: str
    parser: Callable[[str], Answer]
    instruction: str = ""
    directive: str = ""
    plain: str = PLAIN_DIRECTIVE
    template: str = SKELETON
    question: str = ""
    by_page: bool = False
    takes_fields: bool = False


def render(
    task: Task,
    documents: Sequence[str],
    question: str,
    *,
    mode: Mode = Mode.TASK_INSTRUCTION_SPACE,
    labels: Sequence[str] | None = None,
) -> str:
    """Return the prompt; for a chat model, the user's message.

    Args:
        task: what is asked.
        documents: texts of the pages, laid out or not as `mode.has_layout` says.
        question: the user's; may be empty if the task has one.
        mode: with the task's instruction or without.
        labels: of the texts, as the model is to see them; by default "Page 1" and so on, and none
            where there is one text.

    Raises:
        BadRequest: there is no question.
    """
    question = question if question.strip() else task.question
    if not question:
        raise BadRequest(
            "the question is missing",
            f"the task {task.name!r} has none of its own",
            "Ask something about the document.",
        )
    values = {
        "instruction": task.instruction if mode.has_instruction else "",
        "document": _joined(documents, labels),
        "question": question,
        "directive": task.directive if mode.has_instruction else task.plain,
    }
    return fill(task.template, values)


def parse(task: Task, raw: str) -> Answer:
    """Read the model's reply. Never raises: what can't be read as asked stays text."""
    text = raw.strip()
    for echo in (cue(task.template), "Answer:"):
        if echo and text[: len(echo)].casefold() == echo.casefold():
            text = text[len(echo) :].lstrip()
            break
    return task.parser(text)


def _joined(documents: Sequence[str], labels: Sequence[str] | None) -> str:
    if labels is None:
        if len(documents) == 1:
            return documents[0]
        labels = [f"Page {number}" for number in range(1, len(documents) + 1)]
    pairs = zip(labels, documents, strict=True)
    return "\n\n".join(f"[{label}]\n{text}" for label, text in pairs)
