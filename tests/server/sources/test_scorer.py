from __future__ import annotations

import pytest

from turret_server.demo import demo_model
from turret_server.errors import StartupError
from turret_server.scorer.messages import ScorerSettings
from turret_server.sources.scorer import find_scorers


@pytest.fixture(scope="module")
def folder() -> str:
    return str(demo_model(progress=False))


def test_a_model_or_a_table(folder):
    table = f'{{"model": "{folder}", "label": "correct", "max_length": 512}}'
    found = find_scorers({"cappy": folder, "judge": table}, (), progress=False)
    assert found == {
        "cappy": ScorerSettings(model=folder),
        "judge": ScorerSettings(model=folder, label="correct", max_length=512),
    }


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("demo", "{folder}", "taken"),
        ("a+b", "{folder}", "a\\+b"),
        ("judge", "./nowhere", "nowhere"),
        ("judge", '{"label": "x"}', "model"),
        ("judge", '{"model": "x", "template": "y"}', "template"),
        ("judge", '{"model": "x", "max_length": 3}', "max_length"),
        ("judge", '{"model": 3}', "model"),
        ("judge", "{model", "malformed"),
    ],
)
def test_refused(folder, name, text, why):
    with pytest.raises(StartupError, match=why):
        find_scorers({name: text.replace("{folder}", folder)}, ["demo"], progress=False)
