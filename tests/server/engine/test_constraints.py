import numpy as np
import pytest
import torch

from turret_server.engine.constraints import constrain
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.sequence import Sequence

VOCAB = 60
CASES = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.3},
    "presence": {"presence_penalty": 0.7},
    "frequency": {"frequency_penalty": -0.3, "presence_penalty": 1.1},
    "bias": {"logit_bias": {3: 4.5, 7: -100.0}},
    "min_tokens": {"min_tokens": 50, "stop_token_ids": (2, 9)},
    "min_tokens reached": {"min_tokens": 1, "stop_token_ids": (2, 9)},
    "all": {
        "repetition_penalty": 0.8,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": {5: -1.5, 9: 3.0},
        "min_tokens": 50,
        "stop_token_ids": (9,),
    },
}


def sequence(generator, **sampling):
    prompt = generator.integers(0, VOCAB, 10).tolist()
    output = generator.integers(0, VOCAB, 25).tolist()
    request = EngineRequest(id="r", prompt=prompt, sampling=Sampling(**sampling))
    return Sequence(request, [*prompt, *output], 0.0)


def by_hand(logits, sequence):
    """One row, token by token, in float32 as torch rounds it."""
    s, tokens = sequence.request.sampling, sequence.tokens
    output = tokens[sequence.num_prompt :]
    x = logits.clone()
    for token in set(tokens) if s.repetition_penalty != 1 else ():
        x[token] = (
            x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
        )
    for token in set(output):
        count = torch.tensor(float(output.count(token)))
        x[token] -= s.presence_penalty + s.frequency_penalty * count
    for token, bias in s.logit_bias.items():
        x[token] += bias
    if len(output) < s.min_tokens:
        x[list(s.stop_token_ids)] = float("-inf")
    return x


def test_a_batch_is_changed_as_its_rows_are_one_by_one():
    generator = np.random.default_rng(0)
    sequences = [sequence(generator, **case) for case in CASES.values()]
    logits = torch.randn(len(sequences), VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.stack([by_hand(x, s) for x, s in zip(logits, sequences, strict=True)])
    assert constrain(logits, sequences) == {}
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_its_batch(case):
    generator = np.random.default_rng(1)
    plain, changed = sequence(generator), sequence(generator, **CASES[case])
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    alone, untouched = logits[1:].clone(), logits[0].clone()
    constrain(logits, [plain, changed])
    constrain(alone, [changed])
    assert torch.equal(logits[1:], alone)
    assert torch.equal(logits[0], untouched)
