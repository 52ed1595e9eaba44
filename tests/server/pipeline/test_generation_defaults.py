import json

import pytest

from turret_server.api.sampling import ModelLimits, base_sampling
from turret_server.api.schema.chat import ChatBody
from turret_server.errors import StartupError
from turret_server.pipeline.generation_defaults import GenerationDefaults


def write(folder, text):
    (folder / "generation_config.json").write_text(text)
    return folder


def sampling(defaults, **fields):
    body = ChatBody(messages=[{"role": "user", "content": "Hi"}], **fields)
    limits = ModelLimits(100, 1000, (2,), defaults)
    return base_sampling(body, limits, logprobs=None, prompt_logprobs=None, grammar=None)


def test_without_a_file_they_are_openais(tmp_path):
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults(1.0, 1.0, 0, 0.0, 1.0)


def test_a_model_says_what_a_request_leaves_open(tmp_path):
    config = {"temperature": 0.6, "top_k": 20, "top_p": None, "do_sample": True, "eos_token_id": 2}
    found = GenerationDefaults.from_folder(write(tmp_path, json.dumps(config)))
    assert found == GenerationDefaults(temperature=0.6, top_k=20)
    chosen = sampling(found)
    assert (chosen.temperature, chosen.top_k, chosen.top_p) == (0.6, 20, 1.0)


def test_a_request_has_the_last_word():
    defaults = GenerationDefaults(0.6, 0.9, 20, 0.1, 1.2)
    chosen = sampling(
        defaults, temperature=0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0
    )
    assert (chosen.temperature, chosen.top_p, chosen.top_k) == (0.0, 1.0, 0)
    assert (chosen.min_p, chosen.repetition_penalty) == (0.0, 1.0)


@pytest.mark.parametrize("text", ["{", '{"temperature": 9}', '{"top_p": 0}', '{"top_k": "all"}'])
def test_a_damaged_file_is_refused_at_the_start(tmp_path, text):
    with pytest.raises(StartupError, match="generation_config"):
        GenerationDefaults.from_folder(write(tmp_path, text))
