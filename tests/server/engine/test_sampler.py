import math

import numpy as np
import pytest
import torch

from turret_adapters.positions import find_reach
from turret_server.engine.draw import logprob_table, read_logprobs
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.sampler import num_logit_rows, sample_step
from turret_server.engine.sequence import Sequence
from turret_server.engine.shares import Share

VOCAB = 40
pytestmark = pytest.mark.triton


def share(prompt=(1, 2, 3), output=(), start=None, count=1, **sampling):
    request = EngineRequest(
        id="r", prompt=list(prompt), sampling=Sampling(**{"temperature": 0, **sampling})
    )
    sequence = Sequence(request, [*prompt, *output], 0.0, table_row=0)
    if sampling.get("prompt_logprobs") is not None:
        sequence.prompt_logprobs = [None]
    return Share(sequence, len(sequence.tokens) - 1 if start is None else start, count)


def step(logits, *shares):
    return sample_step(logits.clone(), list(shares)).results()


def row(**values):
    logits = torch.zeros(1, VOCAB)
    for token, value in values.items():
        logits[0, int(token[1:])] = value
    return logits


def test_greedy_takes_the_likeliest_and_ties_go_to_the_smaller_id():
    assert step(row(t7=2.0, t9=2.0), share())[0].token == 7


def test_a_share_that_does_not_end_its_sequence_samples_nothing():
    partial = share(prompt=range(10), start=0, count=4)
    assert num_logit_rows(partial) == 0
    results = step(row(t7=2.0), partial, share())
    assert [r.token for r in results] == [None, 7]


def test_logit_bias_and_its_ban():
    assert step(row(t7=2.0), share(logit_bias={9: 5.0}))[0].token == 9
    assert step(row(t7=2.0, t8=1.0), share(logit_bias={7: -100.0}))[0].token == 8


def test_presence_and_frequency_penalties_count_the_output_only():
    logits = row(t3=2.0, t5=1.0)
    assert step(logits, share(prompt=[3, 3], frequency_penalty=2.0))[0].token == 3
    assert step(logits, share(output=[3], presence_penalty=1.5))[0].token == 5
    assert step(logits, share(output=[3], frequency_penalty=0.6))[0].token == 3
    assert step(logits, share(output=[3, 3], frequency_penalty=0.6))[0].token == 5


def test_repetition_penalty_counts_the_prompt_and_shrinks_both_signs():
    assert step(row(t3=2.0, t5=1.5), share(prompt=[3], repetition_penalty=1.5))[0].token == 5
    negative = torch.full((1, VOCAB), -4.0)
    negative[0, 3], negative[0, 5] = -1.0, -1.5
    assert step(negative, share(prompt=[3], repetition_penalty=2.0))[0].token == 5


def test_stop_tokens_are_banned_until_min_tokens():
    kwargs = {"min_tokens": 2, "stop_token_ids": (7,)}
    assert step(row(t7=2.0, t8=1.0), share(output=[1], **kwargs))[0].token == 8
    assert step(row(t7=2.0, t8=1.0), share(output=[1, 1], **kwargs))[0].token == 7


def test_logprobs_are_the_models_own():
    """Neither temperature nor bias moves them."""
    logits = row(t7=2.0, t8=1.0)
    result = step(logits, share(logprobs=2, logit_bias={8: 50.0}, temperature=0.5))[0]
    expected = torch.log_softmax(logits, -1)[0]
    assert result.token == 8
    assert result.logprob.logprob == pytest.approx(expected[8].item())
    assert result.logprob.rank == 2
    assert [t for t, _ in result.logprob.top] == [7, 8]
    assert result.logprob.top[1][1] == result.logprob.logprob  # the same float, for lm-eval


def test_requests_get_as_many_alternatives_as_they_asked_for():
    logits = torch.randn(3, VOCAB)
    results = step(logits, share(logprobs=0), share(), share(logprobs=3))
    assert results[0].logprob.top == []
    assert results[1].logprob is None
    assert len(results[2].logprob.top) == 3


def test_prompt_logprobs_of_a_chunk_are_of_the_tokens_after_its_rows():
    torch.manual_seed(0)
    logits, prompt = torch.randn(3, VOCAB), [4, 5, 6, 7, 8]
    result = step(logits, share(prompt=prompt, start=1, count=3, prompt_logprobs=1))[0]
    assert result.token is None
    assert [p.token for p in result.prompt_logprobs] == [6, 7, 8]
    expected = torch.log_softmax(logits, -1)
    for i, entry in enumerate(result.prompt_logprobs):
        assert math.isclose(entry.logprob, expected[i, entry.token].item(), rel_tol=1e-6)


def test_the_last_prompt_chunk_brings_logprobs_and_a_token():
    logits = torch.randn(3, VOCAB)
    result = step(logits, share(prompt=[4, 5, 6], start=0, count=3, prompt_logprobs=0))[0]
    assert [p.token for p in result.prompt_logprobs] == [5, 6]
    assert result.token == logits[2].argmax()


def test_seeded_draws_do_not_depend_on_the_batch():
    torch.manual_seed(2)
    logits = torch.randn(4, VOCAB)
    shares = [share(output=[1] * i, temperature=1.0, seed=i + 5, top_p=0.9) for i in range(4)]
    together = [r.token for r in step(logits, *shares)]
    alone = [step(logits[i : i + 1], shares[i])[0].token for i in range(4)]
    assert together == alone


class Matcher:
    """Allows one token; breaks on demand."""

    finished = False

    def __init__(self, allowed, error=None):
        self.allowed, self.error, self.accepted = allowed, error, []

    def fill_mask(self, out):
        if self.error:
            raise self.error
        out[:] = 0
        out.view(np.uint32)[self.allowed // 32] = 1 << (self.allowed % 32)

    def accept(self, token):
        self.accepted.append(token)
        return True


@pytest.mark.parametrize("allowed", [0, 31, 32, 39])
def test_a_grammar_decides(allowed):
    constrained = share()
    constrained.sequence.grammar = Matcher(allowed)
    results = step(torch.randn(2, VOCAB), constrained, share())
    assert results[0].token == allowed
    assert constrained.sequence.grammar.accepted == [allowed]


def test_a_grammar_that_breaks_ends_its_own_request_only():
    from turret_server.errors import Unprocessable

    broken = share()
    broken.sequence.grammar = Matcher(1, Unprocessable("the grammar became too complex"))
    results = step(row(t7=2.0).expand(2, -1), broken, share())
    assert results[0].error.kind == "Unprocessable"
    assert results[1].token == 7


def test_ranks_of_log_probabilities():
    logprobs = torch.log_softmax(torch.tensor([[3.0, 1.0, 2.0]]), -1)
    (entry,) = read_logprobs(logprob_table(logprobs, torch.tensor([1]), 1))
    assert (entry.token, entry.rank, entry.top[0][0]) == (1, 3, 0)


def soft_share(start, count, prompt=(1, 2, 3), output=(), virtual=4, **sampling):
    request = EngineRequest(
        id="r", prompt=list(prompt), sampling=Sampling(**{"temperature": 0, **sampling})
    )
    sequence = Sequence.of(request, 0.0, find_reach(prompt, [(None, virtual)]))
    sequence.tokens += output
    sequence.table_row = 0
    if sampling.get("prompt_logprobs") is not None:
        sequence.prompt_logprobs = [None]
    return Share(sequence, start, count)


def test_virtual_tokens_have_no_log_probabilities():
    """4 virtual tokens and 3 of the prompt, in chunks of 3, 2 and 2."""
    rows = [soft_share(*part, prompt_logprobs=0) for part in ((0, 3), (3, 2), (5, 2))]
    assert [num_logit_rows(share) for share in rows] == [0, 1, 2]
    results = step(torch.zeros(3, VOCAB), *rows)
    assert [[e.token for e in r.prompt_logprobs] for r in results] == [[], [2], [3]]
    assert [r.token is None for r in results] == [True, True, False]
    whole = soft_share(0, 7, prompt_logprobs=0)
    assert num_logit_rows(whole) == 3
    (result,) = step(torch.zeros(3, VOCAB), whole)
    assert [e.token for e in result.prompt_logprobs] == [2, 3]


def test_penalties_do_not_see_virtual_tokens():
    logits = row(t3=2.0, t5=1.9)
    assert step(logits, soft_share(6, 1, repetition_penalty=1.5))[0].token == 5
    far = row(**{f"t{VOCAB - 2}": 2.0, "t5": 1.9})  # -2, counted from the end
    assert step(far, soft_share(6, 1, repetition_penalty=1.5))[0].token == VOCAB - 2
    output = soft_share(7, 1, output=[5], presence_penalty=1.0)
    assert step(row(t3=1.0, t5=1.5), output)[0].token == 3
    assert step(row(t3=1.0), soft_share(6, 1, presence_penalty=2.0))[0].token == 3


def test_minimum_and_seed_count_the_answer():
    share = soft_share(7, 1, output=[5], min_tokens=2, stop_token_ids=(7,))
    assert share.sequence.num_output == 1
    assert step(row(t7=2.0, t8=1.0), share)[0].token == 8
