"""One token for every row of logits: constraints, penalties, log-probabilities, the draw.

Nothing here waits for the device: what is to be known on the host is on its way in a `Draw`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.sampling import sample, uniforms
from turret_server.engine.constraints import constrain
from turret_server.engine.draw import Draw, HostCopies, logprob_table
from turret_server.engine.fusion import admit_unlikely, fuse_rows
from turret_server.engine.sequence import Sequence
from turret_server.engine.shares import Share


def sample_step(logits: Tensor, shares: Seq[Share]) -> Draw:
    """Sample for every share of a step whose sequence still runs; all its tokens are known.

    Args:
        logits: float32 [L, V]: for each share the rows that `logit_rows` promised, in order.
            Changed in place. On any device: tokens and the log-probabilities that somebody asked
            for are all that returns from it.
        shares: the step.
    """
    rows: dict[Sequence, int] = {}  # those that sample: their row of `logits`
    which: dict[Sequence, int] = {}  # and their share
    draw = Draw(len(shares), HostCopies(logits.device))
    first = 0
    for i, share in enumerate(shares):
        sequence, count = share.sequence, num_logit_rows(share)
        if sequence.is_running:
            if sequence.prompt_logprobs is not None and not sequence.num_output:
                draw.prompts[i] = draw.copies.send(_prompt_logprobs(logits[first:], share))
            if share.samples:
                rows[sequence], which[sequence] = first + count - 1, i
        first += count
    if rows:
        picked, sequences, weights = _pick(logits, rows)
        draw.rows = {sequence: row for row, sequence in enumerate(sequences)}
        draw.shares = [which[sequence] for sequence in sequences]
        draw.weights = None if weights is None else draw.copies.send(weights)
        raw = _raw_logprobs(picked, sequences, draw)
        admit_unlikely(picked, sequences, logits, rows)
        _sample_rows(picked, sequences, draw, raw)
    draw.copies.close()
    return draw


def _pick(
    logits: Tensor, rows: dict[Sequence, int]
) -> tuple[Tensor, list[Sequence], Tensor | None]:
    """The rows to sample from, their sequences, and the weights of fusions if they are traced."""
    leads = [sequence for sequence in rows if sequence.request.fusion is not None]
    members = {member for lead in leads for member in lead.members}
    alone = [sequence for sequence in rows if sequence not in members]
    kept = [rows[sequence] for sequence in alone]
    if not leads:
        every = len(kept) == logits.shape[0]
        return logits if every else _rows(logits, kept), alone, None
    fused, weights = fuse_rows(logits, leads, rows)
    if alone:
        fused = torch.cat([_rows(logits, kept), fused])
    return fused, alone + leads, weights


def num_logit_rows(share: Share) -> int:
    """How many rows of logits a share needs: its last if it samples, the prompt's for logprobs."""
    sequence = share.sequence
    if sequence.prompt_logprobs is not None and not sequence.num_output:
        return share.count - min(share.count, max(0, sequence.num_virtual - share.start))
    return int(share.samples)


def _raw_logprobs(logits: Tensor, sequences: list[Sequence], draw: Draw) -> Tensor | None:
    """Of the rows that want them: before penalties, bias, constraints, temperature."""
    draw.wants = [i for i, s in enumerate(sequences) if s.request.sampling.logprobs is not None]
    return torch.log_softmax(_rows(logits, draw.wants), dim=-1) if draw.wants else None


def _sample_rows(logits: Tensor, sequences: list[Sequence], draw: Draw, raw: Tensor | None) -> None:
    samplings = [s.request.sampling for s in sequences]
    draw.failed = constrain(logits, sequences)
    draw.tokens = _draw_tokens(logits, sequences)
    draw.host_tokens = draw.copies.send(draw.tokens)
    if raw is not None:
        count = max(samplings[i].logprobs or 0 for i in draw.wants)
        table = logprob_table(raw, _rows(draw.tokens, draw.wants), count)
        draw.logprobs = draw.copies.send(table)


def _prompt_logprobs(logits: Tensor, share: Share) -> Tensor:
    """A table of the prompt tokens that follow the share's rows."""
    sequence = share.sequence
    first = max(share.start, sequence.num_virtual) + 1
    last = min(share.start + share.count + 1, sequence.num_virtual + sequence.num_prompt)
    tokens = sequence.tokens[first:last]
    if not tokens:
        return logits.new_empty(0, 3)
    logprobs = torch.log_softmax(logits[: len(tokens)], dim=-1)
    ids = gpu.to_device(torch.tensor(tokens), logits.device)
    return logprob_table(logprobs, ids, sequence.request.sampling.prompt_logprobs or 0)


def _draw_tokens(logits: Tensor, sequences: list[Sequence]) -> Tensor:
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
