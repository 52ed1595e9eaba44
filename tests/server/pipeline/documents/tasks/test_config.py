"""Tasks of the configuration."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from turret_server.errors import StartupError
from turret_server.pipeline.documents.tasks import TASKS, Mode, load_tasks, parse, render
from turret_server.pipeline.documents.tasks.template import SKELETON

FILE = '''
[tasks.clause]
instruction = "The document is a contract."
directive = "Antworte im Wortlaut."
template = """{instruction}

{document}

Frage: {question}
{directive}
Antwort:"""
answer = "span"

[tasks.docvqa]
directive = "Short, please."
'''


def test_a_table_makes_a_task() -> None:
    task = load_tasks(tomllib.loads(FILE)["tasks"])["clause"]
    assert render(task, ["§ 1 {a}"], "Was?") == (
        "The document is a contract.\n\n§ 1 {a}\n\nFrage: Was?\nAntworte im Wortlaut.\nAntwort:"
    )
    assert parse(task, 'Antwort: "§ 1".').text == "§ 1"


def test_a_built_in_task_keeps_what_the_table_does_not_give() -> None:
    task = load_tasks(tomllib.loads(FILE)["tasks"])["docvqa"]
    assert (task.directive, task.instruction) == ("Short, please.", TASKS["docvqa"].instruction)
    assert task.parser is TASKS["docvqa"].parser


def test_without_tables_there_are_the_built_in_tasks() -> None:
    assert list(load_tasks({})) == [
        "question",
        "docvqa",
        "infographic-vqa",
        "mp-docvqa",
        "mp-docvqa-by-page",
        "key-values",
        "table-csv",
    ]


def test_the_guide_says_what_there_is() -> None:
    guide = (Path(__file__).parents[5] / "docs" / "documents.md").read_text()
    blocks = [dedent(block) for block in re.findall(r"```\w+\n(.*?)\n *```", guide, re.DOTALL)]
    [tables] = [tomllib.loads(block) for block in blocks if block.startswith("[tasks.")]
    assert list(load_tasks(tables["tasks"])) == [*TASKS, "clause"]
    assert SKELETON in blocks
    section = guide.partition("| task |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)`", section, re.MULTILINE) == list(TASKS)
    section = guide.partition("| mode |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(Mode)


@pytest.mark.parametrize(
    ("name", "table", "why"),
    [
        ("a b", {}, "letters, digits"),
        ("", {}, "letters, digits"),
        ("mine", "x", "no table"),
        ("mine", {"instrution": "x"}, "'instrution' is not known"),
        ("mine", {"directive": 3}, "'directive' is no text"),
        ("mine", {"template": "{document}"}, "{question} is missing"),
        ("mine", {"template": "{document}{question}{x}"}, "{x} is no placeholder"),
        ("mine", {"answer": "xml"}, "'answer' is 'xml'"),
    ],
)
def test_a_bad_table_is_refused_at_the_start(name: str, table: Any, why: str) -> None:
    with pytest.raises(StartupError, match=why) as caught:
        load_tasks({name: table})
    assert repr(name) in caught.value.what
