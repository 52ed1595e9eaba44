"""LoRA, LoFiT and CATS on one request, on the demo model, while others use some of them or none.

The adapters are the shipped ones, read by the kinds `lora`, `lofit` and `cats`; float32, one batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.kinds.demo_stack import ASKED, CATS, DEMO, LOFIT, LORA, NEW_TOKENS, Asked, Stack
from tests.kinds.lab import Answer, Lab

from turret_server.demo import demo_model
from turret_server.engine.messages import AdapterUse
from turret_server.pipeline.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Answer]]:
    """What everybody is answered, all in one batch."""
    lab = Lab(demo_model(progress=False), "demo")
    try:
        loaded = {name: lab.load(DEMO / name) for name in (LORA, LOFIT, CATS)}
        assert [x.kind for x in loaded.values()] == ["lora", "lofit", "cats"]
        tokenizer = Tokenizer.load(lab.folder)
        requests = [
            lab.ask(
                tokenizer.encode(asked.prompt),
                *(AdapterUse(loaded[name].digest, w) for name, w in asked.weights.items()),
                max_tokens=NEW_TOKENS,
            )
            for asked in ASKED
        ]
        yield dict(zip(map(str, ASKED), lab.run(requests), strict=True))
    finally:
        lab.close()


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_stack_is_its_reference(answers: dict[str, Answer], asked: Asked) -> None:
    """Logits reach 42 and sums are in another order (tests/kinds/test_real_model.py)."""
    answer = answers[str(asked)]
    tokens, logprobs = Stack(demo_model(progress=False), asked.weights).greedy(answer.prompt)
    assert answer.prompt + answer.tokens == tokens
    got = torch.tensor([[value for _, value in entry.top] for entry in answer.entries])
    places = torch.tensor([[token for token, _ in entry.top] for entry in answer.entries])
    torch.testing.assert_close(got, logprobs.gather(1, places), atol=1e-4, rtol=0)


def test_the_stacks_differ(answers: dict[str, Answer]) -> None:
    """So that the equalities of this file mean something."""
    prompt = answers[str(ASKED[0])].prompt
    firsts = [a.entries[0].logprob for a in answers.values() if a.prompt == prompt]
    assert len(firsts) == 3
    assert min(abs(one - other) for one in firsts for other in firsts if one is not other) > 0.01
