from __future__ import annotations

import pytest

from turret_server.cli.line_editor import LineEditor

MODELS = [("base", False), ("formal-sql", False), ("formal", True), ("sql", True)]


@pytest.fixture
def editor() -> LineEditor:
    return LineEditor(
        ["/adapter", "/adapters", "/model", "/quit"], ["/adapter", "/model"], lambda: MODELS
    )


@pytest.mark.parametrize(
    ("line", "word", "matches"),
    [
        ("/ad", "/ad", ["/adapter ", "/adapters "]),
        ("/adapter f", "f", ["formal", "formal-sql"]),
        ("/model ", "", ["base", "formal", "formal-sql", "sql"]),
        ("/adapter formal:0.7+", "", ["formal", "sql"]),
        ("/adapter formal+s", "s", ["sql"]),
        ("/adapter formal:0", "formal:0", []),
        ("/reset f", "f", []),
        ("tell me of f", "f", []),
        ("f", "f", []),
    ],
)
def test_completes_commands_names_and_parts_of_stacks(
    editor: LineEditor, line: str, word: str, matches: list[str]
) -> None:
    assert editor.matches(line, word) == matches


def test_a_backslash_continues_the_line(
    editor: LineEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["one\\", "two\\", "three"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert editor.read("base") == "one\ntwo\nthree"
