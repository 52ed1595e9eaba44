"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT = "TURRET_PARENT_PROCESS"


def environment_of_child() -> dict[str, str]:
    """The environment for a process that calls `die_with_parent`."""
    return {**os.environ, _PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """From now on: whatever ends the parent ends this process, and no signal from a terminal."""
    # The parent ends us, after its clients; SIGHUP, where it survives that, makes it reload.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # It may have ended before that. In a container it is number 1 itself.
        parent = os.environ.get(_PARENT)
        if parent is not None and os.getppid() != int(parent):
            sys.exit("the parent is gone")
