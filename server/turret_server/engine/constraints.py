"""What requests change about their logits: penalties, biases, bans, grammars. Built on the host."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from turret_kernels import gpu
from turret_kernels.penalties import apply_penalties, changes_table
from turret_kernels.token_mask import apply_token_mask
from turret_server.engine.messages import ErrorInfo, Sampling
from turret_server.engine.sequence import Sequence
from turret_server.errors import TurretError


def constrain(logits: Tensor, sequences: Seq[Sequence]) -> dict[int, ErrorInfo]:
    """Penalise and ban what the requests say, in place.

    Args:
        logits: float32 [R, V], on any device; what is needed there is sent without waiting.
        sequences: R, one per row.

    Returns:
        By row: why its grammar broke.
    """
    _penalise(logits, sequences)
    return _keep_to_grammars(logits, sequences)


def _penalise(logits: Tensor, sequences: Seq[Sequence]) -> None:
    found = [
        (row, *_changes(sequence))
        for row, sequence in enumerate(sequences)
        if _changes_logits(sequence.request.sampling)
    ]
    if not found:
        return
    rows, *columns = zip(*found, strict=True)
    row = np.repeat(rows, [len(tokens) for tokens in columns[0]])
    table = changes_table(row, *(np.concatenate(column) for column in columns))
    apply_penalties(logits, gpu.to_device(table, logits.device))


def _changes_logits(s: Sampling) -> bool:
    return bool(
        s.logit_bias
        or s.min_tokens
        or s.repetition_penalty != 1
        or s.presence_penalty
        or s.frequency_penalty
    )


def _changes(sequence: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of one row, repetition, penalty and bias of each (formulas: OpenAI; CTRL, eq. 4)."""
    s = sequence.request.sampling
    known = np.array(sequence.tokens[sequence.num_virtual :], dtype=np.int64)
    output = known[sequence.num_prompt :]
    seen = known[: len(known) if s.repetition_penalty != 1 else 0]
    biased = np.array(list(s.logit_bias), dtype=np.int64)
    stops = s.stop_token_ids if len(output) < s.min_tokens else ()
    banned = np.array(stops, dtype=np.int64)

    tokens = np.unique(np.concatenate([seen, output, biased, banned]))
    repetition = np.ones(len(tokens), dtype=np.float32)
    penalty, bias = np.zeros((2, len(tokens)), dtype=np.float32)
    repetition[np.searchsorted(tokens, seen)] = s.repetition_penalty
    ids, counts = np.unique(output, return_counts=True)
    frequency = np.float32(s.frequency_penalty) * counts.astype(np.float32)
    penalty[np.searchsorted(tokens, ids)] = np.float32(s.presence_penalty) + frequency
    bias[np.searchsorted(tokens, biased)] = list(s.logit_bias.values())
    bias[np.searchsorted(tokens, banned)] = -np.inf
    return tokens, repetition, penalty, bias


def _keep_to_grammars(logits: Tensor, sequences: Seq[Sequence]) -> dict[int, ErrorInfo]:
    failed: dict[int, ErrorInfo] = {}
    rows: list[int] = []
    masks: list[np.ndarray] = []
    for row, sequence in enumerate(sequences):
        if sequence.grammar is None:
            continue
        mask = np.empty(-(-logits.shape[1] // 32), dtype=np.int32)
        try:
            sequence.grammar.fill_mask(mask)
        except TurretError as error:
            failed[row] = ErrorInfo(type(error).__name__, error.what, error.why, error.fix)
        else:
            rows.append(row)
            masks.append(mask)
    if rows:
        which, allowed = torch.tensor(rows, dtype=torch.int32), torch.from_numpy(np.stack(masks))
        device = logits.device
        apply_token_mask(logits, gpu.to_device(which, device), gpu.to_device(allowed, device))
    return failed
