"""Tasks: text and question -> a prompt, and the model's reply -> an answer.

task.py      Task, render, parse             template.py  what surrounds document and question
answers.py   what surrounds an answer        config.py    the built-in tasks, and the user's
fields.py    keys -> JSON schema, question   confidence.py  the best of several pages' answers
"""

from turret_server.pipeline.documents.tasks.confidence import MAX_CONFIDENCE, best
from turret_server.pipeline.documents.tasks.config import TASKS, load_tasks
from turret_server.pipeline.documents.tasks.fields import fields_question, fields_schema
from turret_server.pipeline.documents.tasks.task import Answer, Mode, Task, parse, render

__all__ = [
    "MAX_CONFIDENCE",
    "TASKS",
    "Answer",
    "Mode",
    "Task",
    "best",
    "fields_question",
    "fields_schema",
    "load_tasks",
    "parse",
    "render",
]
