"""The table of attacks: every test that it names is there, and it cannot claim what did not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.attacks import ATTACKS, FAULTS, ROOT, Attack, Outcome, outcomes, row

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.chaos.test_a" name="test_one[x]">
  <properties><property name="seconds" value="0.1"/></properties></testcase>
<testcase classname="tests.chaos.test_a" name="test_two"><failure/></testcase>
<testcase classname="tests.chaos.test_ab" name="test_three"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize("attack", FAULTS + ATTACKS, ids=lambda attack: attack.what)
def test_its_tests_are_there(attack):
    assert attack.tests
    for test in attack.tests:
        file, _, name = test.partition("::")
        path = ROOT / "tests" / file
        assert path.exists(), test
        if name:
            assert re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE), test


def test_what_ran_is_read(tmp_path: Path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    found = outcomes(tmp_path / "junit.xml")
    assert found == {
        "chaos/test_a.py::test_one[x]": Outcome("", {"seconds": "0.1"}),
        "chaos/test_a.py::test_two": Outcome("failure", {}),
        "chaos/test_ab.py::test_three": Outcome("", {}),
    }
    one = row(Attack("a", "b", ("chaos/test_a.py::test_one",)), found)
    assert one == "| a | b | holds (1 test); seconds 0.1 |"
    whole = row(Attack("a", "b", ("chaos/test_a.py",)), found)
    assert whole == "| a | b | **FAILED**: chaos/test_a.py::test_two failure |"
    assert "FAILED" in row(Attack("a", "b", ("chaos/test_none.py",)), found)


def test_the_page_lists_every_row():
    page = (ROOT / "docs/security.md").read_text()
    for attack in FAULTS + ATTACKS:
        assert f"| {attack.what} | {attack.holds} |" in page
    assert "FAILED" not in page
