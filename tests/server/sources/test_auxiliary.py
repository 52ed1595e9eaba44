from __future__ import annotations

import json
import shutil

import pytest

from turret_server.demo import demo_model
from turret_server.errors import StartupError
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.sources.auxiliary import find_auxiliaries


@pytest.fixture(scope="module")
def demo():
    return demo_model(progress=False)


@pytest.fixture(scope="module")
def main(demo):
    return Tokenizer.load(demo)


@pytest.fixture
def other(demo, tmp_path):
    """The same tokens but for two, whose ids are exchanged."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, folder)
    (folder / "model.safetensors").symlink_to(demo / "model.safetensors")
    text = json.loads((demo / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    first, second = list(vocabulary)[1000:1002]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    return folder


def test_a_model_with_the_same_tokens_is_found(demo, main):
    found = find_auxiliaries({"twin": str(demo)}, main, ["demo"], progress=False)
    assert found["twin"].folder == demo
    assert found["twin"].tokenizer.vocabulary_digest == main.vocabulary_digest


def test_another_vocabulary_is_refused(other, main):
    with pytest.raises(StartupError, match="token ids do not mean the same"):
        find_auxiliaries({"small": str(other)}, main, (), progress=False)


@pytest.mark.parametrize(
    ("name", "why"), [("demo", "taken"), ("a b", "not allowed"), ("", "empty")]
)
def test_names_that_cannot_be_used(demo, main, name, why):
    with pytest.raises(StartupError, match=why):
        find_auxiliaries({name: str(demo)}, main, ["demo"], progress=False)
