"""What one chat request wants of its documents, and whether that can be: before any is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turret_server.api.documents.input import DocumentInput, documents_in
from turret_server.api.schema.chat import ChatBody
from turret_server.api.schema.constrain import Constraint
from turret_server.api.schema.documents import LayoutFields
from turret_server.api.service import Service
from turret_server.errors import BadRequest, TurretError
from turret_server.pipeline.documents.prompt import Framing, Place, Sheet, with_pages
from turret_server.pipeline.documents.tasks import (
    Mode,
    Task,
    fields_question,
    fields_schema,
)

_MODES = {
    "turret": Mode.TASK_INSTRUCTION_SPACE,
    "latin": Mode.TASK_INSTRUCTION_SPACE,
    **{mode.value: mode for mode in Mode},
}


@dataclass(frozen=True, slots=True)
class DocumentUse:
    """What a request wants of its documents.

    Attributes:
        inputs: its documents, by the place of the part that carries them.
        messages: of the request, plain JSON values with the parts as they were sent.
        fields: how to read and show them.
        task: that it names.
        framing: how pages and questions stand together.
        constraint: on the answer, where the task asks for fields.
    """

    inputs: dict[Place, DocumentInput]
    messages: list[dict[str, Any]]
    fields: LayoutFields
    task: Task | None
    framing: Framing
    constraint: Constraint | None

    def text(self, sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
        """The messages as text, with these pages of the documents in them.

        Raises:
            BadRequest: a part is neither a document nor text, or the task has no question.
        """
        return with_pages(self.messages, sheets, self.framing)

    @property
    def by_page(self) -> bool:
        """Each page is asked by itself."""
        return self.task is not None and self.task.by_page


def document_use(service: Service, body: ChatBody) -> DocumentUse | None:
    """What a request wants of its documents; None without documents.

    Raises:
        BadRequest: a part or an option is malformed, there is no such task, or no question for
            it, or options contradict each other.
        Unprocessable: a file is named that is not there.
    """
    inputs = documents_in(body.messages)
    fields = body.layout or LayoutFields()  # type: ignore[call-arg]
    if not inputs:
        if body.layout is not None:
            raise BadRequest(
                "'layout' cannot be used here",
                "no message of the request carries a document",
                'Send a part {"type": "document", ...}, an image or a file.',
                param="layout",
            )
        return None
    task = _task(service, fields)
    schema = _schema(fields, task)
    if task is not None and task.by_page:
        _check_by_page(body, inputs)
    if schema is not None and (body.tools or body.constraint() is not None):
        raise BadRequest(
            "'layout.fields' contradicts tools or another constraint",
            "an answer can follow one form only",
            "Send one of them.",
            param="layout.fields",
        )
    framing = Framing(
        frozenset(inputs),
        task,
        _MODES[fields.mode or "turret"],
        "" if schema is None else fields_question(schema),
    )
    messages = [
        {**message.model_dump(exclude_unset=True, exclude={"content"}), "content": message.content}
        for message in body.messages
    ]
    constraint = None if schema is None else Constraint("json_schema", schema, "layout.fields")
    use = DocumentUse(inputs, messages, fields, task, framing, constraint)
    try:
        use.text([])  # what is wrong with them is said before any is read
    except TurretError as error:
        error.param = error.param or "messages"
        raise
    return use


def _task(service: Service, fields: LayoutFields) -> Task | None:
    if fields.task is None:
        return None
    tasks = service.documents.settings.tasks
    if (task := tasks.get(fields.task)) is None:
        raise BadRequest(
            f"there is no task {fields.task!r}",
            f"known are {', '.join(sorted(tasks))}",
            "Correct it, or describe the task in [tasks] of the configuration.",
            param="layout.task",
        )
    return task


def _schema(fields: LayoutFields, task: Task | None) -> dict[str, Any] | None:
    if fields.fields is None:
        return None
    if task is None or not task.takes_fields:
        raise BadRequest(
            "'layout.fields' cannot be used here",
            "the task extracts no fields" if task else "the request names no task",
            'Set layout.task to "key-values".',
            param="layout.fields",
        )
    try:
        return fields_schema(fields.fields)
    except TurretError as error:
        error.param = "layout.fields"
        raise


def _check_by_page(body: ChatBody, inputs: dict[Place, DocumentInput]) -> None:
    reasons = {
        "n": (body.n or 1) > 1,
        "tools": bool(body.tools),
        "logprobs": bool(body.logprobs),
        "prompt_logprobs": body.prompt_logprobs is not None,
        "messages": {message for message, _ in inputs} != {len(body.messages) - 1},
    }
    for param, is_wrong in reasons.items():
        if is_wrong:
            raise BadRequest(
                f"{param!r} does not go with the task {body.layout and body.layout.task!r}",
                "it asks every page by itself and answers with the best of the answers",
                "The last message carries all documents, and the request wants one answer.",
                param=param,
            )
