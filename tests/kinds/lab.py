"""Tiny bases in both worlds: transformers' model, and an engine of ours that serves it."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.kinds import cases
from tests.kinds.case import Case, Reference
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from turret_adapters.loading import LoadedAdapter
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling, TokenLogprob
from turret_server.engine.settings import EngineSettings

VOCAB = 128
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
BASES = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),  # biases at q, k and v
    "llama-biased": lambda: LlamaConfig(  # biases at every linear
        **SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "gemma": lambda: Gemma3TextConfig(  # tied; GELU, four norms a layer, two of three windowed
        **SIZES, head_dim=16, query_pre_attn_scalar=20, sliding_window=16, sliding_window_pattern=2
    ),
}
PROMPTS = [
    [5, 17, 99, 3, 42, 8, 64, 21, 9, 77, 11],
    [7, 7, 30, 2],
    [(i * 37 + 11) % VOCAB for i in range(45)],  # more than a KV block
]
NEW_TOKENS = 4

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(cases.__path__)
    for case in importlib.import_module(f"{cases.__name__}.{module.name}").CASES
]


@dataclass
class Answer:
    """What the engine gave one request: everything it knows about every position."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    entries: list[TokenLogprob] = field(default_factory=list)  # of positions 1 and later


class Lab:
    """One base, served."""

    def __init__(self, folder: Path, name: str, dtype: str = "float32", **settings: Any) -> None:
        self.folder, self.name = folder, name
        self._wake = threading.Event()
        self.engine = Engine(
            EngineSettings(model=str(folder), dtype=dtype, **settings), wake=self._wake.set
        )

    @classmethod
    def make(cls, folder: Path, name: str) -> Lab:
        """A tiny random base, written by transformers."""
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(BASES[name]()).eval().float()
        for key, parameter in model.named_parameters():
            # Large enough for every error to show; norms with gains of their own, of which
            # Gemma stores what they are above 1.
            is_gain = "norm" in key and name != "gemma"
            parameter.data.normal_(1.0 if is_gain else 0.0, 0.2)
        model.save_pretrained(folder)
        return cls(folder, name, kv_cache_bytes=16 << 20, max_step_tokens=24)

    def model(self) -> PreTrainedModel:
        """The base in transformers, fresh."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval()

    def load(self, folder: Path) -> LoadedAdapter:
        """Load an adapter into the engine."""
        return self.engine.store.load(folder).result()

    def unload(self, adapter: LoadedAdapter) -> None:
        """Forget it."""
        self.engine.store.forget(adapter.digest)

    def ask(self, prompt: list[int], *adapters: AdapterUse, **sampling: Any) -> EngineRequest:
        """A greedy request that wants the log-probabilities of every position."""
        sampling = {"temperature": 0.0, "max_tokens": NEW_TOKENS, **sampling}
        name = f"{len(prompt)}-{adapters}"
        return EngineRequest(
            id=name,
            prompt=prompt,
            sampling=Sampling(logprobs=3, prompt_logprobs=3, **sampling),
            adapters=adapters,
        )

    def run(self, requests: Sequence[EngineRequest]) -> list[Answer]:
        """Run requests in one batch, as far as they fit, to their ends."""
        answers = {request.id: Answer(request.prompt) for request in requests}
        for request in requests:
            refused = self.engine.submit(request)
            assert refused is None, refused
        while not self.engine.idle:
            self._wake.clear()
            events = self.engine.step()
            if not events and not self.engine.scheduler.running:
                self._wake.wait(timeout=30)
            for event in events:
                assert event.error is None, event.error
                answer = answers[event.id]
                answer.tokens += event.tokens
                answer.entries += [e for e in event.prompt_logprobs or [] if e is not None]
                answer.entries += event.logprobs or []
        assert self.engine.store.num_pins == 0
        assert self.engine.stats.kv_blocks_used == 0
        return [answers[request.id] for request in requests]

    def close(self) -> None:
        """End its threads and processes."""
        self.engine.close()


def assert_same(answer: Answer, reference: Reference, tolerance: float = 5e-5) -> None:
    """Every log-probability is the reference's, and the tokens are its most likely ones.

    Both compute in float32, with sums in another order: logits of about 10 differ by 1e-5.
    """
    tokens = answer.prompt + answer.tokens
    logprobs = reference(torch.tensor(tokens)).log_softmax(-1)
    assert len(answer.entries) == len(tokens) - 1
    for position, entry in enumerate(answer.entries):
        row = logprobs[position]
        assert entry.token == tokens[position + 1]
        for token, value in [(entry.token, entry.logprob), *entry.top]:
            error = abs(float(row[token]) - value)
            assert error < tolerance, f"position {position}, token {token}: off by {error:.2e}"
    for position in range(len(answer.prompt) - 1, len(tokens) - 1):
        best = float(logprobs[position].max())
        assert best - float(logprobs[position, tokens[position + 1]]) < tolerance


def base_reference(model: PreTrainedModel) -> Reference:
    """What the base computes."""

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        return model(tokens[None]).logits[0].float()

    return logits
