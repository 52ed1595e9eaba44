"""One token for every row of logits: constraints, penalties, log-probabilities, the draw."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import msgspec
import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.sampling import sample, uniforms
from turret_server.engine.constraints import constrain
from turret_server.engine.fusion import fuse_rows
from turret_server.engine.messages import TokenLogprob
from turret_server.engine.scheduler import Sampled, Share
from turret_server.engine.sequence import Sequence


def sample_step(logits: Tensor, shares: Seq[Share]) -> list[Sampled]:
    """Sample for every share of a step.

    Args:
        logits: float32 [L, V]: for each share the rows that `logit_rows` promised, in order.
            Changed in place. On any device: tokens and the log-probabilities that somebody asked
            for are all that returns from it.
        shares: the step.

    Returns:
        One result per share, in order; without a token where the share does not sample.
    """
    results: list[Sampled] = [Sampled()] * len(shares)
    rows: dict[Sequence, int] = {}  # those that sample: their row of `logits`
    which: dict[Sequence, int] = {}  # and their share
    first = 0
    for i, share in enumerate(shares):
        count = num_logit_rows(share)
        if share.sequence.prompt_logprobs is not None and not share.sequence.num_output:
            results[i] = Sampled(prompt_logprobs=_prompt_logprobs(logits[first:], share))
        if share.samples:
            rows[share.sequence] = first + count - 1
            which[share.sequence] = i
        first += count
    if not rows:
        return results
    picked, sequences, weights = _pick(logits, rows)
    sampled = _sample_rows(picked, sequences)
    for sequence, result, used in zip(sequences, sampled, weights, strict=True):
        i = which[sequence]
        if used and result.logprob is not None:
            traced = msgspec.structs.replace(result.logprob, weights=used)
            result = replace(result, logprob=traced)
        if (prompt_logprobs := results[i].prompt_logprobs) is not None:
            result = replace(result, prompt_logprobs=prompt_logprobs)
        results[i] = result
    return results


def _pick(
    logits: Tensor, rows: dict[Sequence, int]
) -> tuple[Tensor, list[Sequence], list[list[float]]]:
    """The rows to sample from, their sequences, and the weights of fusions that trace them."""
    leads = [sequence for sequence in rows if sequence.request.fusion is not None]
    members = {member for lead in leads for member in lead.members}
    alone = [sequence for sequence in rows if sequence not in members]
    kept = [rows[sequence] for sequence in alone]
    if not leads:
        every = len(kept) == logits.shape[0]
        return logits if every else _rows(logits, kept), alone, [[]] * len(alone)
    fused, weights = fuse_rows(logits, leads, rows)
    if alone:
        fused = torch.cat([_rows(logits, kept), fused])
    return fused, alone + leads, [[]] * len(alone) + weights


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
    raw = torch.log_softmax(_rows(logits, wants), dim=-1) if wants else None
    failed = constrain(logits, sequences)
    chosen = _draw(logits, sequences)
    found: dict[int, TokenLogprob] = {}
    if raw is not None:
        count = max(samplings[i].logprobs or 0 for i in wants)
        entries = token_logprobs(raw, _rows(chosen, wants), count)
        for i, entry in zip(wants, entries, strict=True):
            top = entry.top[: samplings[i].logprobs]
            found[i] = TokenLogprob(entry.token, entry.logprob, entry.rank, top)
    tokens = chosen.tolist()
    for i, sequence in enumerate(sequences):
        if sequence.grammar is not None and i not in failed:
            sequence.grammar.accept(tokens[i])
    return [
        Sampled(error=failed[i]) if i in failed else Sampled(token, found.get(i))
        for i, token in enumerate(tokens)
    ]


def token_logprobs(logprobs: Tensor, tokens: Tensor, count: int) -> list[TokenLogprob]:
    """The log-probability and rank of one token per row, with the `count` likeliest.

    Args:
        logprobs: float32 [R, V].
        tokens: int64 [R], beside them.
        count: how many alternatives.
    """
    own = logprobs.gather(1, tokens[:, None])
    rank = (logprobs > own).sum(-1, keepdim=True) + 1
    values, ids = logprobs.topk(min(count, logprobs.shape[1]), dim=-1)
    # One transfer: float64 holds every float32 and every id.
    columns = [tokens[:, None], rank, own, ids, values]
    table = torch.cat([column.double() for column in columns], dim=1).tolist()
    found = []
    for token, place, value, *top in table:
        likeliest, logs = top[: len(top) // 2], top[len(top) // 2 :]
        pairs = [(int(i), log) for i, log in zip(likeliest, logs, strict=True)]
        found.append(TokenLogprob(int(token), value, int(place), pairs))
    return found


def _prompt_logprobs(logits: Tensor, share: Share) -> list[TokenLogprob]:
    """Of the prompt tokens that follow the share's rows."""
    sequence = share.sequence
    first = max(share.start, sequence.num_virtual) + 1
    last = min(share.start + share.count + 1, sequence.num_virtual + sequence.num_prompt)
    tokens = sequence.tokens[first:last]
    if not tokens:
        return []
    logprobs = torch.log_softmax(logits[: len(tokens)], dim=-1)
    ids = gpu.to_device(torch.tensor(tokens), logits.device)
    return token_logprobs(logprobs, ids, sequence.request.sampling.prompt_logprobs or 0)


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


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """A copy of some rows."""
    return x.index_select(0, gpu.to_device(torch.tensor(rows), x.device))
