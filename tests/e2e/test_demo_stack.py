"""Over HTTP: LoRA, LoFiT and CATS of the demo on one request while others use some or none.

float32; one volley of requests, each against transformers with PEFT and hooks.
"""

from __future__ import annotations

import asyncio

import httpx2
import pytest
import torch
from tests.kinds.demo_stack import ASKED, NEW_TOKENS, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def choices(serve, base):
    """For everybody the answer to `"adapters": [...]`, and to a `model` that says the same."""

    async def ask(http, asked, **fields):
        body = {"prompt": asked.prompt, "temperature": 0, "max_tokens": NEW_TOKENS}
        body |= {"echo": True, "logprobs": 1, **fields}
        response = await http.post("/v1/completions", json=body)
        return response.raise_for_status().json()["choices"][0]

    async def volley(url):
        async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
            jobs = []
            for asked in ASKED:
                listed = [{"name": name, "weight": w} for name, w in asked.weights.items()]
                jobs.append(ask(http, asked, model=base, adapters=listed))
                name = "+".join(f"{name}:{w:g}" for name, w in asked.weights.items())
                jobs.append(ask(http, asked, model=name or base))
            return await asyncio.gather(*jobs)

    with serve("--dtype=float32") as server:
        found = asyncio.run(volley(server.url))
    return {str(asked): found[2 * i : 2 * i + 2] for i, asked in enumerate(ASKED)}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_stack_is_its_reference(choices, demo_folder, tokenizer, asked):
    tokens, logprobs = Stack(demo_folder, asked.weights).greedy(tokenizer.encode(asked.prompt))
    wanted = logprobs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    for choice in choices[str(asked)]:
        assert choice["text"] == tokenizer.decode(tokens)
        got = torch.tensor(choice["logprobs"]["token_logprobs"][1:])
        # Logits reach 42 and sums are in another order (tests/kinds/test_real_model.py).
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
