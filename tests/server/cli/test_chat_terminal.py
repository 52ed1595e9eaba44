"""`turret chat` on a real terminal: Tab completes, Ctrl-C ends the answer, Ctrl-D the program."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest


def _take_terminal() -> None:
    # A session leader takes the first terminal that it opens: Ctrl-C comes from there.
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    # A shell lets its background jobs ignore it, and so do their children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, args: list[str]) -> None:
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            args,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
        )
        os.close(theirs)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def expect(self, pattern: str) -> str:
        """Wait for a pattern; what came before and with it."""
        end = time.monotonic() + 30
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._own], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come; {self._seen!r} did"
            self._seen += os.read(self._own, 4096).decode()
        text, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminal(server: Any) -> Iterator[Terminal]:
    server.cards.append({"id": "endless", "kind": "lora"})
    code = "from turret_server.cli import app; app()"
    terminal = Terminal([sys.executable, "-c", code, "chat", "--url", server.url])
    terminal.expect("Ctrl-D leaves")
    terminal.expect("base> ")
    yield terminal
    terminal.close()


@pytest.mark.e2e
def test_tab_completes_the_parts_of_a_stack(terminal: Terminal) -> None:
    terminal.type("/adap\t")
    terminal.expect("ter")
    terminal.type(" formal:0.7+s\t\r")
    terminal.expect(r"formal:0\.7\+sql> ")


@pytest.mark.e2e
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(server: Any, terminal: Terminal) -> None:
    terminal.type("/model end\t\r")
    terminal.expect("endless> ")
    terminal.type("Hello\r")
    terminal.expect("and on and on")
    terminal.type("\x03")
    terminal.expect("stopped")
    assert server.left.wait(10), "the server goes on answering nobody"
    terminal.expect("endless> ")
    # In two parts: Python's readline does not see a signal that comes between its prompt and its
    # wait for a key.
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.type("\x03")
    terminal.expect("endless> ")
    terminal.type("/model base\rGo on\r")
    terminal.expect("of course")
    terminal.expect("base> ")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0
    *_, last = server.bodies("/v1/chat/completions")
    roles = [message["role"] for message in last["messages"]]
    assert roles == ["user", "assistant", "user"]  # the stopped answer is remembered
    assert last["messages"][1]["content"].startswith("Four")
