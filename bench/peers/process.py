"""Start a server, wait until it answers, measure its memory, stop it with all its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from deployment import Launch

_START_LIMIT_S = 900.0
_STOP_LIMIT_S = 30.0
_LOG_TAIL_LINES = 30


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerFailed(RuntimeError):
    """A server ended, or did not answer in time. The message ends with its last output."""


@contextmanager
def running(launch: Launch, port: int, log: Path) -> Iterator[RunningServer]:
    """Run a server in a process group of its own for the length of a `with` block.

    Raises:
        ServerFailed: the server does not come up.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started_s = time.monotonic()
        process = subprocess.Popen(
            launch.argv,
            env=os.environ | launch.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}{launch.ready_path}", log)
            yield RunningServer(process.pid, time.monotonic() - started_s)
        finally:
            _stop(process)


class RunningServer:
    """A server that answers.

    Attributes:
        group_id: its process group.
        start_s: seconds from its start to its first answer.
    """

    def __init__(self, group_id: int, start_s: float):
        self.group_id, self.start_s = group_id, start_s

    def memory_mb(self) -> float:
        """Return the proportional set size of all its processes: shared pages count once.

        Children that left the group (a daemon's habit) are not counted; none here do.
        """
        total_kb = 0
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if os.getpgid(int(folder.name)) != self.group_id:
                    continue
                for line in (folder / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total_kb += int(line.split()[1])
            except OSError:  # it ended meanwhile
                continue
        return round(total_kb / 1000, 1)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline_s:
        time.sleep(0.2)
        try:
            with urlopen(url, timeout=5) as answer:
                ready = answer.status == 200
        except (URLError, OSError):
            ready = False
        # After the answer: a stranger on the same port must not pass for the server.
        if process.poll() is not None:
            raise ServerFailed(f"It ended with status {process.returncode}.\n{_tail(log)}")
        if ready:
            return
    raise ServerFailed(f"No answer at {url} within {_START_LIMIT_S:g} s.\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, as an operator does; then end whatever is left of its group."""
    process.terminate()
    deadline_s = time.monotonic() + _STOP_LIMIT_S
    while time.monotonic() < deadline_s and _group_alive(process):
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reap the leader, which would otherwise keep the group alive as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
