"""The demo model, a real one: logits and greedy tokens against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from turret_server.demo import demo_model
from turret_server.models.decoder import Decoder

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
]
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def folder():
    return demo_model(progress=False)


@pytest.fixture(scope="module")
def continued(folder):
    """(prompt tokens, prompt with its greedy continuation, float32 logits) by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            tokens = model.generate(
                ids, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
            )
            out.append((ids.shape[1], tokens[0].tolist(), model(tokens).logits[0]))
    return out


def test_float32_logits_and_greedy_tokens(folder, continued, ragged_logits):
    decoder = Decoder.load(folder, torch.float32, torch.device("cpu"), max_model_len=64)
    results = ragged_logits(decoder, [tokens for _, tokens, _ in continued], block_tokens=16)
    for (prompt, tokens, expected), logits in zip(continued, results, strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        # Fed with these very tokens, it would have chosen each of them.
        assert logits[prompt - 1 : -1].argmax(-1).tolist() == tokens[prompt:]


def test_bfloat16_errs_no_more_than_transformers(folder, continued, ragged_logits):
    """Its eight bits of mantissa cost 0.12 on average of logits up to 42 (transformers: 0.13).

    Blocks of 32 tokens take the native kernels where the processor has them.
    """
    decoder = Decoder.load(folder, torch.bfloat16, torch.device("cpu"), max_model_len=64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    sequences = [tokens for _, tokens, _ in continued]
    ours = torch.cat(ragged_logits(decoder, sequences, block_tokens=32))
    with torch.inference_mode():
        theirs = torch.cat([model(torch.tensor([tokens])).logits[0] for tokens in sequences])
    exact = torch.cat([logits for _, _, logits in continued])
    assert (ours - exact).abs().mean() < (theirs - exact).abs().mean()
    assert (ours.argmax(-1) == exact.argmax(-1)).float().mean() > 0.9
