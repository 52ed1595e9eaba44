"""A CATS adapter in a bf16 engine: recorded steps skip neurons, and give what eager steps give."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from turret_adapters.banks.threshold import ThresholdBank
from turret_kernels import native
from turret_server.engine.batch import Padding
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.runner import Runner
from turret_server.engine.settings import EngineSettings

pytestmark = pytest.mark.skipif(native.lib is None, reason="no CPU kernels here")
NEW_TOKENS = 12


@pytest.fixture(
    scope="module", params=[(LlamaConfig, 0.4), (Gemma3TextConfig, 2.0)], ids=["llama", "gemma"]
)
def folder(request, tmp_path_factory):
    """A tiny model, and beside it an adapter that leaves out most neurons of two layers.

    Gemma's gate is a GELU, and its q and k have norms.
    """
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config_class, threshold = request.param
    config = config_class(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=544,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=False,  # tied, so small a Gemma repeats what it reads
        max_position_embeddings=128,
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder / "base")
    (folder / "cats").mkdir()
    adapter = {"kind": "cats", "version": 1, "thresholds": [0.75 * threshold, 0, threshold]}
    (folder / "cats" / "turret_adapter.json").write_text(json.dumps(adapter))
    return folder


class Served:
    """An engine with the adapter."""

    def __init__(self, folder):
        self.wake = threading.Event()
        settings = EngineSettings(
            model=str(folder / "base"), dtype="bfloat16", kv_cache_bytes=8 << 20
        )
        self.engine = Engine(settings, wake=self.wake.set)
        self.digest = self.engine.store.load(folder / "cats").result().digest

    def run(self, *adapted: bool) -> list[list[int]]:
        """Greedy tokens of one request each, with or without the adapter."""
        answers = {}
        for i, is_adapted in enumerate(adapted):
            request = EngineRequest(
                id=str(i),
                prompt=[5 + i, 17, 99, 3 + i, 42, 8],
                sampling=Sampling(temperature=0.0, max_tokens=NEW_TOKENS),
                adapters=(AdapterUse(self.digest),) if is_adapted else (),
            )
            answers[request.id] = []
            assert self.engine.submit(request) is None
        while not self.engine.idle:
            self.wake.clear()
            events = self.engine.step()
            if not events and not self.engine.scheduler.running:
                self.wake.wait(timeout=30)
            for event in events:
                assert event.error is None
                answers[event.id] += event.tokens
        return list(answers.values())


@pytest.fixture
def served(folder, monkeypatch):
    served = Served(folder)
    served.calls = []
    original = ThresholdBank.mlp

    def counted(bank, layer, *args):
        served.calls.append(layer)
        return original(bank, layer, *args)

    monkeypatch.setattr(ThresholdBank, "mlp", counted)
    yield served
    served.engine.store.close()


@pytest.mark.parametrize("num", [1, 3])
def test_recorded_steps_are_eager_steps(served, monkeypatch, num):
    recorded = served.run(*[True] * num)
    assert set(served.calls) == {0, 2}  # where it has thresholds
    before = len(served.calls)
    assert served.run(*[True] * num) == recorded
    assert len(served.calls) == before, "the graphs were not used again"
    monkeypatch.setattr(served.engine._runner, "_recorder", None)
    assert served.run(*[True] * num) == recorded
    assert len(served.calls) > before
    assert served.run(*[False] * num) != recorded


def test_beside_the_base_everything_is_computed(served):
    alone = served.run(True, True)
    calls = len(served.calls)
    base = served.run(False, False)
    served.calls.clear()
    mixed = served.run(True, False)
    assert calls > 0
    # Prompts and answers are equally long: no step has adapted rows alone.
    assert not served.calls
    assert mixed[1] == base[1]
    assert alone[0] != base[0]


def test_a_padded_step_still_skips_neurons(folder, served, monkeypatch):
    """Three rows as a GPU's graphs would have them: four."""
    want = served.run(True, True, True)
    monkeypatch.setattr(
        Runner, "padding", lambda runner, scratch_block: Padding((1, 2, 4), scratch_block)
    )
    padded, rows = Served(folder), []
    original = ThresholdBank.mlp
    monkeypatch.setattr(
        ThresholdBank,
        "mlp",
        lambda bank, layer, x, *args: rows.append(len(x)) or original(bank, layer, x, *args),
    )
    assert padded.run(True, True, True) == want
    padded.engine.store.close()
    assert 4 in rows
