"""Processes that end with their parent, in containers too, where the parent has the number 1."""

from __future__ import annotations

import subprocess
import sys

import pytest

from turret_server.engine.lifetime import environment_of_child

CHILD = """
import os
os.getppid = lambda: {parent}
from turret_server.engine.lifetime import die_with_parent
die_with_parent()
print("alive")
"""


@pytest.mark.parametrize(("started_by", "parent", "alive"), [(1, 1, True), (42, 1, False)])
def test_a_child_ends_if_its_parent_has_ended_before(monkeypatch, started_by, parent, alive):
    monkeypatch.setattr("os.getpid", lambda: started_by)
    environment = environment_of_child()
    monkeypatch.undo()
    run = subprocess.run(
        [sys.executable, "-c", CHILD.format(parent=parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("alive" in run.stdout) == (run.returncode == 0) == alive
    assert alive or "the parent is gone" in run.stderr
