"""docs/operations.md, executed: every console block, in order, as a person would type it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "operations.md"
_END = "-- end of output"


class Step(NamedTuple):
    """A command, and what the guide says it prints; "" where it says nothing."""

    command: str
    output: str


def steps(text: str) -> Iterator[Step]:
    """The commands of all console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *rest = part.splitlines()
            while rest and rest[0].startswith("> "):
                command += "\n" + rest.pop(0)[2:]
            yield Step(command, "\n".join(rest))


def as_pattern(output: str) -> str:
    """A regular expression for an output in which `…` is whatever it is."""
    return ".*".join(re.escape(part) for part in output.split("…"))


class Shell:
    """One bash for all the commands: variables, functions and jobs stay."""

    def __init__(self, folder: Path, **environment: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TURRET_")}
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env={**clean, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """What a command prints, on both streams; it must succeed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho; echo '{_END}' $?\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith(_END):
                output = "".join(lines).strip()
                assert line.split() == [*_END.split(), "0"], f"{command}\n{output}"
                return output
            lines.append(line)
        raise AssertionError(f"the shell ended: {command}")

    def close(self) -> None:
        """End it and whatever it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def port() -> str:
    """A free one, in the place of the guide's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.fixture
def shell(tmp_path: Path, port: str) -> Iterator[Shell]:
    """In a folder that looks like a clone after `make serve`."""
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    shell = Shell(tmp_path, TURRET_URL=f"http://127.0.0.1:{port}")
    yield shell
    shell.close()


def test_the_commands_print_what_the_guide_says(shell: Shell, tmp_path: Path, port: str) -> None:
    told = list(steps(GUIDE.read_text().replace("8000", port)))
    assert len(told) > 20
    for command, output in told:
        printed = shell.run(command)
        log = tmp_path / "turret.log"
        said = log.read_text() if log.exists() else ""
        assert not output or re.fullmatch(as_pattern(output), printed, re.DOTALL), (
            f"$ {command}\n{printed}\n-- the guide says\n{output}\n-- the server says\n{said}"
        )


def test_make_serve_serves_what_the_guide_begins_with() -> None:
    run = subprocess.run(
        ["make", "-n", "serve"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert "turret serve demo --port 8000" in run.stdout
