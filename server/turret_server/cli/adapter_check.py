"""What `turret adapters` finds out with the base model at hand, in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from turret_adapters.loading import LoadedAdapter
from turret_adapters.store import AdapterStore, StoreLimits
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder
from turret_server.pipeline.tokenizer import Tokenizer

_MAX_TOKENS = 512
SAMPLE_TEXT = """\
Thank you for your letter of the third of May. The committee met on Tuesday and agreed to pay for \
twelve new desks, two printers and the repair of the roof. Please send the invoice to our office \
in Lyon before the end of June. If the boxes arrive damaged, call the number below and ask for \
Mrs Tanaka. The following function returns the largest of three numbers: def largest(a, b, c): \
return max(a, max(b, c)). A train leaves at 9:40 and needs two hours and a half; it arrives at \
12:10.
"""


def verify(path: Path, base: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    """Load an adapter for a base, as a server would: the facts.

    Raises:
        AdapterError: the server would refuse it.
        StartupError: the base cannot be served.
    """
    torch_dtype, device = getattr(torch, dtype), torch.device("cpu")
    decoder = Decoder.load(base, torch_dtype, device, DecoderConfig.from_folder(base).max_context)
    store = AdapterStore(decoder.shape, StoreLimits(), device, torch_dtype, base_bias=decoder.bias)
    try:
        loaded = store.load(path).result()
        store.check([loaded.digest])
    finally:
        store.close()
    return asdict(loaded)


def output_drift(base: Path, original: Path, other: Path, text: str) -> tuple[float, float]:
    """How far two adapters' answers differ on a text.

    Args:
        base: the model's folder.
        original: an adapter's folder.
        other: another's.
        text: its first 512 tokens are read.

    Returns:
        Mean |difference| of the log-probabilities of the text's tokens: between both adapters, and
        between the original and the base alone, which the first should be small against.

    Raises:
        AdapterError: an adapter cannot be served.
        StartupError: the base cannot be served.
    """
    tokens = Tokenizer.load(base).encode(text)[:_MAX_TOKENS]
    wake = threading.Event()
    settings = EngineSettings(
        model=str(base), dtype="float32", max_model_len=len(tokens) + 1, kv_cache_bytes=256 << 20
    )
    engine = Engine(settings, wake=wake.set)
    try:
        adapters = [engine.store.load(path).result() for path in (original, other)]
        want, got, alone = (
            torch.tensor(_logprobs(engine, wake, tokens, use))
            for use in (adapters[:1], adapters[1:], [])
        )
    finally:
        engine.store.close()
    return float((want - got).abs().mean()), float((want - alone).abs().mean())


def _logprobs(
    engine: Engine, wake: threading.Event, tokens: list[int], adapters: Sequence[LoadedAdapter]
) -> list[float]:
    """Log-probabilities of all tokens but the first."""
    refused = engine.submit(
        EngineRequest(
            id="drift",
            prompt=tokens,
            sampling=Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0),
            adapters=tuple(AdapterUse(adapter.digest) for adapter in adapters),
        )
    )
    events = [] if refused is None else [refused]
    while not engine.idle:
        wake.clear()
        found = engine.step()
        if not found and not engine.scheduler.running:
            wake.wait(timeout=30)
        events += found
    if problem := next((event.error for event in events if event.error), None):
        raise RuntimeError(f"{problem.what}: {problem.why}")
    scored = [entry for event in events for entry in event.prompt_logprobs or []]
    return [entry.logprob for entry in scored if entry is not None]
