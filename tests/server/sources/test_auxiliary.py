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
    assert found["twin"].tokens.ids is None


def test_tokens_are_paired_by_their_spelling(other, main):
    found = find_auxiliaries({"small": str(other)}, main, (), progress=False)
    ids = found["small"].tokens.ids
    assert [i for i, id in enumerate(ids) if i != id] == [1000, 1001]
    assert ids[1000:1002] == (1001, 1000)


@pytest.fixture
def lacking(other):
    """It spells one token otherwise, and so lacks the main model's."""
    text = json.loads((other / "tokenizer.json").read_text())
    token, vocabulary = text["added_tokens"][-1], text["model"]["vocab"]
    old, token["content"] = token["content"], "a new one"
    vocabulary["a new one"] = vocabulary.pop(old)
    (other / "tokenizer.json").write_text(json.dumps(text))
    return other, old


def test_a_vocabulary_that_lacks_tokens_needs_a_map(lacking, main):
    folder, token = lacking
    known = main.vocabulary()[token]

    def ids():
        return find_auxiliaries({"small": str(folder)}, main, (), progress=False)[
            "small"
        ].tokens.ids

    with pytest.raises(StartupError, match="lacks 1 of 49152 tokens"):
        ids()
    for pairs, expected in (({}, -1), ({token: "a new one"}, known), ({token: None}, -1)):
        (folder / "turret_id_map.json").write_text(json.dumps(pairs))
        assert ids()[known] == expected
    for wrong, why in (
        ('{"no such token": "a"}', "unknown token"),
        ('{"<|im_end|>": null}', "ends an answer"),
        ("[1]", "cannot be read"),
    ):
        (folder / "turret_id_map.json").write_text(wrong)
        with pytest.raises(StartupError, match=why):
            ids()


@pytest.mark.parametrize(
    ("name", "why"), [("demo", "taken"), ("a b", "not allowed"), ("", "empty")]
)
def test_names_that_cannot_be_used(demo, main, name, why):
    with pytest.raises(StartupError, match=why):
        find_auxiliaries({name: str(demo)}, main, ["demo"], progress=False)
