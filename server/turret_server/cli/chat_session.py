"""The loop of an interactive `turret chat`: questions, slash commands, Ctrl-C."""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from turret_server.cli.conversation import Conversation, Reply
from turret_server.cli.line_editor import LineEditor
from turret_server.cli.remote import Remote
from turret_server.cli.terminal import marked, note, print_end, print_problem, write_answer
from turret_server.errors import BadRequest, TurretError

_HELP = {
    "/adapter NAME": "who answers next: an adapter, a recipe, a stack (a:0.7+b)",
    "/model NAME": "the same; the base model's name goes back to the base",
    "/adapters": "list what the server offers",
    "/system TEXT": "set the system message; without TEXT show it; '-' removes it",
    "/reset": "forget what was said, keep model and system message",
    "/save FILE": "write the conversation as the JSON body of a chat request",
    "/stats": "show or hide tokens per second and time to the first token",
    "/help": "this list",
    "/quit": "leave, as Ctrl-D does",
}


class ChatSession:
    """Talks until the user leaves.

    Args:
        runner: the event loop in which `remote` is open.
        remote: the server.
        conversation: to go on with.
        models: the cards of what the server offers.
        stats: show the speed of each answer.
        read: asks the user for a line, given the label to prompt with; the terminal by default.
        console: for all but the answers.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        remote: Remote,
        conversation: Conversation,
        models: list[dict[str, Any]],
        *,
        stats: bool = False,
        read: Callable[[str], str] | None = None,
        console: Console | None = None,
    ) -> None:
        self._runner = runner
        self._remote = remote
        self._conversation = conversation
        self._models = models
        self._stats = stats
        self._console = console or Console()
        self._commands: dict[str, Callable[[str], None]] = {
            "/adapter": self._use,
            "/model": self._use,
            "/adapters": self._list,
            "/system": self._set_system,
            "/reset": self._reset,
            "/save": self._save,
            "/stats": self._toggle_stats,
            "/help": self._help,
        }
        self._read = read or self._editor().read

    def run(self) -> None:
        """Ask for lines and answer them until Ctrl-D or `/quit`.

        Raises:
            RemoteError: the model to begin with is not served.
        """
        self._check(self._conversation.model)
        note(
            self._console,
            f"{self._conversation.model} at {self._remote.url}. "
            "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.",
        )
        while True:
            try:
                line = self._read(self._conversation.model)
            except KeyboardInterrupt:  # drops the line, as in a shell
                self._console.print()
                continue
            except EOFError:
                self._console.print()
                return
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                self._handle(line)
            except TurretError as error:
                print_problem(self._console, error.what, error.why, error.fix)
            except KeyboardInterrupt:
                note(self._console, "stopped")

    def _handle(self, line: str) -> None:
        if not line.startswith("/"):
            if line.strip():
                self._ask(line.strip())
            return
        name, _, argument = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            close = difflib.get_close_matches(name, [*self._commands, "/quit"], n=1)
            raise BadRequest(
                f"there is no command {name!r}",
                "lines that begin with a slash are commands",
                f"Did you mean {close[0]}?"
                if close
                else "/help lists them. To say this, begin the line with a blank.",
            )
        command(argument.strip())

    def _ask(self, question: str) -> None:
        reply = Reply()
        body = self._conversation.body(question)
        try:
            self._runner.run(reply.receive(self._remote, body, write_answer))
        except KeyboardInterrupt:
            write_answer("\n")
            note(self._console, "stopped; what you see stays in the conversation")
            if reply.text:
                self._conversation.add(question, reply.text)
            return
        except TurretError:
            if reply.text:
                write_answer("\n")
            raise  # neither question nor answer is remembered: it can be asked again
        write_answer("\n")
        self._conversation.add(question, reply.text)
        print_end(self._console, reply, stats=self._stats)

    def _use(self, name: str) -> None:
        if not name:
            self._list("")
            return
        self._check(name)
        self._conversation.model = name

    def _check(self, name: str) -> None:
        """Only what is not in the list is asked for: other servers know no stacks."""
        if name not in (card["id"] for card in self._models):
            self._runner.run(self._remote.check_model(name))

    def _list(self, _: str) -> None:
        self._models = self._runner.run(self._remote.models())
        table = Table(box=None, pad_edge=False, show_header=False)
        for card in self._models:
            current = card["id"] == self._conversation.model
            table.add_row(
                "*" if current else "",
                f"[bold]{marked(card['id'])}[/]",
                marked(str(card.get("kind") or "")),
                marked(str(card.get("root") or "")),
            )
        self._console.print(table)

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        else:
            note(self._console, self._conversation.system or "no system message is set")

    def _reset(self, _: str) -> None:
        self._conversation.messages.clear()
        note(self._console, "a new conversation")

    def _save(self, file: str) -> None:
        path = Path(file or time.strftime("chat-%Y%m%d-%H%M%S.json")).expanduser()
        text = json.dumps(self._conversation.body(), ensure_ascii=False, indent=2) + "\n"
        try:
            with path.open("x", encoding="utf-8") as target:  # overwrites nothing
                target.write(text)
        except OSError as error:
            raise BadRequest(
                f"{str(path)!r} was not written",
                error.strerror or str(error),
                "Name another file: /save FILE.",
            ) from error
        note(self._console, f"written to {path}")

    def _toggle_stats(self, _: str) -> None:
        self._stats = not self._stats
        note(self._console, f"the speed of answers is {'shown' if self._stats else 'hidden'}")

    def _help(self, _: str) -> None:
        table = Table(box=None, pad_edge=False, show_header=False)
        for usage, text in _HELP.items():
            table.add_row(f"[bold]{usage}[/]", marked(text))
        self._console.print(table)
        note(
            self._console,
            "Anything else is said to the model. A line that ends in \\ goes on in the next.",
        )

    def _editor(self) -> LineEditor:
        return LineEditor(
            commands=[*self._commands, "/quit"],
            naming=["/adapter", "/model"],
            models=lambda: [
                (card["id"], card.get("kind") not in ("base", "recipe")) for card in self._models
            ],
        )
