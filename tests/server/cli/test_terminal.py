from __future__ import annotations

import io

from rich.console import Console

from turret_server.cli.terminal import print_problem, printable


def test_control_characters_are_dropped() -> None:
    assert printable("a\x1b[2Jb\x9bc\x7f\r\nd\té") == "a[2Jbc\nd\té"


def test_foreign_text_is_no_markup() -> None:
    output = io.StringIO()
    print_problem(Console(file=output), "the model '[/b]' does not exist", "[red]no", "")
    assert output.getvalue() == "error: the model '[/b]' does not exist\nwhy: [red]no\n"
