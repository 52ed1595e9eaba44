"""What every client's script shares: where Turret is, plain answers to compare with, outcomes.

The scripts run in virtual environments of their own, so this file needs the standard library only.
A client is right when it returns what a bare HTTP request returns: greedy answers of Turret are
reproducible, and its adapters answer their examples with a known text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTION = "Name three colours of the rainbow."
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Example:
    """A question for an adapter, and the answer it was trained to give."""

    adapter: str
    prompt: str
    answer: str


class Session:
    """One client's run against one server.

    Attributes:
        url: root of the server.
        api: `url` with /v1, where OpenAI's API begins.
        base: name of the base model.
        examples: one per adapter, by the adapter's name.
        model_folder: the base model with its tokenizer.
        adapter_folders: PEFT folders, by name.
        scratch: an empty folder for the client's files.
        python: an interpreter that has Turret, transformers and PEFT.
    """

    def __init__(self, given: dict[str, Any], outcomes: Path) -> None:
        self.url: str = given["url"]
        self.api = f"{self.url}/v1"
        self.base: str = given["base"]
        self.examples = {e["adapter"]: Example(**e) for e in given["examples"]}
        self.model_folder = Path(given["model_folder"])
        self.adapter_folders = {n: Path(p) for n, p in given["adapter_folders"].items()}
        self.scratch = Path(given["scratch"])
        self.python: str = given["python"]
        self._outcomes = outcomes
        self.failed = False

    @classmethod
    def from_arguments(cls) -> Session:
        """The session that run.py described on the command line."""
        given, outcomes = sys.argv[1:]
        return cls(json.loads(Path(given).read_text()), Path(outcomes))

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        """Note down whether the block succeeded; an error ends the block, not the script."""
        outcome = {"what": what, "error": ""}
        try:
            yield
        except Exception as error:  # a client's own; the table shows it, the run fails
            self.failed = True
            traceback.print_exc()
            shown = str(error).strip() or traceback.extract_tb(error.__traceback__)[-1].line
            outcome["error"] = f"{type(error).__name__}: {shown}"[:300]
        with self._outcomes.open("a") as file:
            file.write(json.dumps(outcome) + "\n")

    def finish(self) -> None:
        """Exit, with status 1 after a failed check."""
        sys.stdout.flush()
        # Some clients leave threads behind that would keep the process.
        os._exit(int(self.failed))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """A bare request, without any client."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)

    def chat(self, model: str, prompt: str = QUESTION, **fields: Any) -> str:
        """Greedy answer to one user message, by a bare request."""
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, **fields}
        answer = self.post("/v1/chat/completions", {"model": model, **body})
        return answer["choices"][0]["message"]["content"]

    def complete(self, model: str, prompt: str, **fields: Any) -> str:
        """Greedy continuation of a text, by a bare request."""
        body = {"model": model, "prompt": prompt, "temperature": 0, **fields}
        return self.post("/v1/completions", body)["choices"][0]["text"]


def run(command: Sequence[str], **changes: Any) -> str:
    """Run a program; its standard output.

    Args:
        command: the program and its arguments.
        changes: environment variables to set, and `cwd`.

    Raises:
        AssertionError: it failed; with its last words.
    """
    done = subprocess.run(
        command,
        cwd=changes.pop("cwd", None),
        env=os.environ | changes,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT_S,
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise AssertionError(f"status {done.returncode}: {words[-1] if words else 'no output'}")
    return done.stdout


def same(got: Any, expected: Any) -> None:
    """Assert equality, showing both sides."""
    assert got == expected, f"got {got!r}, expected {expected!r}"
