"""Filters of fused requests beside what else bans tokens: something is always left."""

from __future__ import annotations

import numpy as np
import pytest
from tests.server.engine.test_fusion import (
    PROMPT,
    A,
    Bench,
    one_thread,  # noqa: F401 (a fixture)
)

from turret_server.pipeline.fusion import FusionSpec


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Bench(tmp_path_factory.mktemp("filters")).serve()
    yield served
    served.engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filters", [{"plausible": 1.0}, {"nucleus": 1e-6}])
def test_a_filter_leaves_a_grammar_something(served, temperature, filters):
    """Of what the grammar allows nothing is likely: the own model chooses among it."""
    spec = FusionSpec(method="dexperts", experts=(A,), weights=2.0, **filters)
    free = served.run([served.ask("free", spec, max_tokens=1)])["free"].tokens[0]
    allowed = [token for token in (30, 31, 32, 33) if token != free]

    class Few:
        finished = False

        def fill_mask(self, mask):
            mask[:] = 0
            for token in allowed:
                mask[token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))

        def accept(self, token):
            return token in allowed

    request = served.ask("few", spec, temperature=temperature, seed=3, max_tokens=6)
    assert served.engine.submit(request) is None
    served.engine.scheduler._by_id["few"].grammar = Few()
    tokens = []
    while not served.engine.idle:
        for event in served.engine.step():
            assert event.error is None
            tokens += event.tokens
    assert len(tokens) == 6
    assert set(tokens) <= set(allowed)
    if temperature == 0:
        logits = served._models["base"](PROMPT + tokens)[len(PROMPT) - 1 : -1]
        assert tokens == [allowed[row[allowed].argmax()] for row in logits]


def test_a_filter_leaves_something_beside_stop_tokens_that_are_banned(served):
    spec = FusionSpec(method="dexperts", experts=(A,), weights=2.0, plausible=1.0)
    first = served.run([served.ask("free", spec, max_tokens=1)])["free"].tokens[0]
    request = served.ask("few", spec, max_tokens=1, min_tokens=1, stop_token_ids=(first,))
    (token,) = served.run([request])["few"].tokens
    assert token == served._models["base"](PROMPT)[-1].argsort()[-2]
