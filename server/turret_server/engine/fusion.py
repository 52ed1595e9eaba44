"""Fused requests in a step: the rows of all members become one, before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import msgspec
import torch
from torch import Tensor

from turret_kernels import fusion as kernel
from turret_server.engine.messages import EngineRequest, Fusion
from turret_server.engine.sequence import Sequence

_FAR = 1e4  # below what was kept: no probability beside it, at any temperature


def member_requests(request: EngineRequest, fusion: Fusion) -> list[EngineRequest]:
    """A request for each member beside the first: the same but for prompt, recipe and model."""
    return [
        msgspec.structs.replace(
            request,
            prompt=member.prompt,
            adapters=member.adapters,
            model=member.model,
            fusion=None,
        )
        for member in fusion.members
    ]


def fuse_rows(
    logits: Tensor, leads: Seq[Sequence], rows: Mapping[Sequence, int]
) -> tuple[Tensor, Tensor | None]:
    """What the members of fused requests make of the next token.

    Args:
        logits: float32 [L, V].
        leads: of Q requests.
        rows: of all their members in `logits`.

    Returns:
        float32 [Q, V]; and the weights of all terms, float32, if one of the requests traces them.
    """
    fusions = [_formula(lead, rows) for lead in leads]
    fused, weights = kernel.fuse(logits, kernel.Members.of(fusions, logits.device))
    for row, lead in zip(fused, leads, strict=True):
        _ban(row, lead)
    traced = any(lead.request.fusion is not None and lead.request.fusion.trace for lead in leads)
    return fused, weights if traced else None


def admit_unlikely(
    fused: Tensor, sequences: Seq[Sequence], logits: Tensor, rows: Mapping[Sequence, int]
) -> None:
    """Let constrained requests fall back, in place, on what their filters left out.

    A grammar may allow nothing of what the own model finds likely. Then it chooses by the own
    model alone; while one likely token is allowed, the others have no probability.

    Args:
        fused: float32 [R, V], finite where a filter kept a token.
        sequences: R.
        logits: float32 [L, V], of all members.
        rows: of the sequences in `logits`.
    """
    for index, lead in enumerate(sequences):
        fusion = lead.request.fusion
        if fusion is None or not (fusion.plausible > 0 or fusion.nucleus < 1):
            continue
        if lead.grammar is None and lead.num_output >= lead.request.sampling.min_tokens:
            continue
        row, own = fused[index], logits[rows[lead]]
        torch.where(row == float("-inf"), own - own.amax() + row.amax() - _FAR, row, out=row)
        _ban(row, lead)


def _ban(row: Tensor, lead: Sequence) -> None:
    """Ban what a member's vocabulary lacks, whatever its weight: it must go on from the token."""
    for member in lead.others:
        if member.banned is not None:
            row.index_fill_(0, member.banned, float("-inf"))


def split_weights(leads: Seq[Sequence], weights: Seq[float]) -> list[list[float]]:
    """The weights that `fuse_rows` returned, per request; none if it does not trace them."""
    values, taken = iter(weights), []
    for lead in leads:
        fusion = lead.request.fusion
        assert fusion is not None
        mine = [next(values) for _ in fusion.terms]
        taken.append(mine if fusion.trace else [])
    return taken


def _formula(lead: Sequence, rows: Mapping[Sequence, int]) -> kernel.Fusion:
    fusion, members = lead.request.fusion, lead.members
    assert fusion is not None
    return kernel.Fusion(
        rows=tuple(rows[members[i]] for i in fusion.terms),
        weights=fusion.weights,
        temperatures=fusion.temperatures,
        mixture=fusion.mixture,
        plausible=fusion.plausible,
        nucleus=fusion.nucleus,
        limit=fusion.limit,
        grid=fusion.grid,
        joint=fusion.joint,
    )
