"""What commands print: text from elsewhere must not steer the user's terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console

    from turret_server.cli.conversation import Reply

_CONTROLS = {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in ("\n", "\t")
}


def printable(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROLS)


def marked(text: str) -> str:
    """Foreign text for rich: printable, and without meaning as markup."""
    return escape(printable(text))


def print_problem(console: Console, what: str, why: str, fix: str) -> None:
    """What happened, why, and how to fix it, each on its line."""
    console.print(f"[bold red]error:[/] {marked(what)}", highlight=False, soft_wrap=True)
    for label, text in (("why", why), ("fix", fix)):
        if text:
            console.print(f"[bold]{label}:[/] {marked(text)}", highlight=False, soft_wrap=True)


def write_answer(text: str) -> None:
    """A piece of an answer to stdout, at once; a file or a pipe gets it untouched."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_end(console: Console, reply: Reply, *, stats: bool) -> None:
    """What is worth saying after an answer: that it is not complete, and how fast it came."""
    if reply.finish_reason == "length":
        note(console, "cut off: the answer reached its limit of tokens")
    if stats:
        note(console, reply.stats())


def note(console: Console, text: str) -> None:
    """A remark of ours beside the conversation."""
    console.print(marked(text), style="dim", highlight=False, soft_wrap=True)
