"""One token for every row of logits: constraints, penalties, log-probabilities, the draw."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from turret_kernels.sampling import sample, uniforms
from turret_server.engine.messages import ErrorInfo, Sampling, TokenLogprob
from turret_server.engine.scheduler import Sampled, Share
from turret_server.engine.sequence import Sequence
from turret_server.errors import TurretError


def sample_step(logits: Tensor, shares: Seq[Share]) -> list[Sampled]:
    """Sample for every share of a step.

    Args:
        logits: float32 [L, V]: for each share the rows that `logit_rows` promised, in order.
            Changed in place.
        shares: the step.

    Returns:
        One result per share, in order; without a token where the share does not sample.
    """
    results: list[Sampled] = [Sampled()] * len(shares)
    rows: list[int] = []  # row of `logits` that samples
    which: list[int] = []  # its share
    first = 0
    for i, share in enumerate(shares):
        count = num_logit_rows(share)
        if share.sequence.prompt_logprobs is not None and not share.sequence.num_output:
            results[i] = Sampled(prompt_logprobs=_prompt_logprobs(logits[first:], share))
        if share.samples:
            rows.append(first + count - 1)
            which.append(i)
        first += count
    if not rows:
        return results
    picked = logits if len(rows) == logits.shape[0] else logits[rows]
    for i, result in zip(
        which, _sample_rows(picked, [shares[i].sequence for i in which]), strict=True
    ):
        prompt_logprobs = results[i].prompt_logprobs
        results[i] = (
            result
            if prompt_logprobs is None
            else Sampled(result.token, result.logprob, prompt_logprobs, result.error)
        )
    return results


def num_logit_rows(share: Share) -> int:
    """How many rows of logits a share needs: its last if it samples, the prompt's for logprobs."""
    sequence = share.sequence
    if sequence.prompt_logprobs is not None and not sequence.num_output:
        return share.count - min(share.count, max(0, sequence.num_virtual - share.start))
    return int(share.samples)


def _sample_rows(logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    samplings = [s.request.sampling for s in sequences]
    wants = [i for i, s in enumerate(samplings) if s.logprobs is not None]
    # Log-probabilities are the model's own: before penalties, bias, constraints, temperature.
    raw = torch.log_softmax(logits[wants], dim=-1) if wants else None
    failed: dict[int, ErrorInfo] = {}
    for i, sequence in enumerate(sequences):
        if _is_shaped(samplings[i]):
            _shape(logits[i], sequence)
        if sequence.grammar is not None:
            try:
                _constrain(logits[i], sequence)
            except TurretError as error:
                failed[i] = ErrorInfo(type(error).__name__, error.what, error.why, error.fix)
    chosen = _draw(logits, sequences).tolist()
    logprobs: dict[int, TokenLogprob] = {}
    if raw is not None:
        ids, count = [chosen[i] for i in wants], max(samplings[i].logprobs or 0 for i in wants)
        found = token_logprobs(raw, ids, count)
        for i, entry in zip(wants, found, strict=True):
            logprobs[i] = TokenLogprob(
                entry.token, entry.logprob, entry.rank, entry.top[: samplings[i].logprobs]
            )
    for i, sequence in enumerate(sequences):
        if sequence.grammar is not None and i not in failed:
            sequence.grammar.accept(chosen[i])
    return [
        Sampled(error=failed[i]) if i in failed else Sampled(token, logprobs.get(i))
        for i, token in enumerate(chosen)
    ]


def token_logprobs(logprobs: Tensor, tokens: list[int], count: int) -> list[TokenLogprob]:
    """The log-probability and rank of one token per row, with the `count` likeliest.

    Args:
        logprobs: float32 [R, V].
        tokens: R ids.
        count: how many alternatives.
    """
    ids = torch.tensor(tokens, device=logprobs.device)[:, None]
    own = logprobs.gather(1, ids)
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    values, order = logprobs.topk(min(count, logprobs.shape[1]), dim=-1)
    return [
        TokenLogprob(token, value, rank, list(zip(ids, tops, strict=True)))
        for token, value, rank, ids, tops in zip(
            tokens, own[:, 0].tolist(), ranks, order.tolist(), values.tolist(), strict=True
        )
    ]


def _prompt_logprobs(logits: Tensor, share: Share) -> list[TokenLogprob]:
    """Of the prompt tokens that follow the share's rows."""
    sequence = share.sequence
    first = max(share.start, sequence.num_virtual) + 1
    last = min(share.start + share.count + 1, sequence.num_virtual + sequence.num_prompt)
    tokens = sequence.tokens[first:last]
    if not tokens:
        return []
    logprobs = torch.log_softmax(logits[: len(tokens)], dim=-1)
    return token_logprobs(logprobs, tokens, sequence.request.sampling.prompt_logprobs or 0)


def _is_shaped(s: Sampling) -> bool:
    return bool(
        s.logit_bias
        or s.min_tokens
        or s.repetition_penalty != 1
        or s.presence_penalty
        or s.frequency_penalty
    )


def _shape(logits: Tensor, sequence: Sequence) -> None:
    """Penalties, bias and banned stops of one row, in place (formulas: OpenAI; CTRL, eq. 4)."""
    s = sequence.request.sampling
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.tokens[sequence.num_virtual :])))
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / s.repetition_penalty, values * s.repetition_penalty
        )
    output = sequence.tokens[sequence.num_virtual + sequence.num_prompt :]
    if output and (s.presence_penalty or s.frequency_penalty):
        ids, counts = np.unique(np.array(output), return_counts=True)
        penalty = s.presence_penalty + s.frequency_penalty * torch.from_numpy(counts)
        logits[torch.from_numpy(ids)] -= penalty.float()
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias))
        logits[ids] += torch.tensor(list(s.logit_bias.values()), dtype=torch.float32)
    if len(output) < s.min_tokens and s.stop_token_ids:
        logits[torch.tensor(s.stop_token_ids)] = float("-inf")


def _constrain(logits: Tensor, sequence: Sequence) -> None:
    """Ban what the grammar does not allow next."""
    assert sequence.grammar is not None
    mask = np.empty(-(-logits.shape[0] // 32), dtype=np.int32)
    sequence.grammar.fill_mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: logits.shape[0]]
    logits.masked_fill_(torch.from_numpy(bits == 0), float("-inf"))


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """int64 [R]: a token per row of `logits` [R, V]."""
    samplings = [s.request.sampling for s in sequences]
    return sample(
        logits,
        torch.tensor([s.temperature for s in samplings], dtype=torch.float32),
        torch.tensor([s.top_k for s in samplings]),
        torch.tensor([s.top_p for s in samplings], dtype=torch.float32),
        torch.tensor([s.min_p for s in samplings], dtype=torch.float32),
        uniforms([s.seed for s in samplings], [s.num_output for s in sequences]),
    )
