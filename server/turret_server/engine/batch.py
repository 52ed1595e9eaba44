"""From the scheduler's shares to the decoder's batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from turret_adapters.plan import RowUse
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.engine.sampler import num_logit_rows
from turret_server.engine.scheduler import Share
from turret_server.models.batch import Batch


class BatchBuilder:
    """Builds batches in buffers of its own: a batch is valid until the next is built.

    The buffers never move, so a recorded graph finds the inputs of every step where it found those
    of the first.

    Args:
        max_tokens: most token rows in one step.
        max_running: most sequences in one step.
        max_blocks: blocks of the longest sequence.
        block_tokens: tokens of a block.
    """

    def __init__(
        self, max_tokens: int, max_running: int, max_blocks: int, block_tokens: int
    ) -> None:
        self._block_tokens = block_tokens
        self._token_ids = np.zeros(max_tokens, dtype=np.int64)
        self._positions = np.zeros(max_tokens, dtype=np.int64)
        self._slots = np.zeros(max_tokens, dtype=np.int64)
        self._query_start = np.zeros(max_running + 1, dtype=np.int32)
        self._context_len = np.zeros(max_running, dtype=np.int32)
        # By the scheduler's table rows, kept from step to step; and in the order of the batch.
        self._tables = np.zeros((max_running, max_blocks), dtype=np.int32)
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * max_running
        self._block_table = np.zeros((max_running, max_blocks), dtype=np.int32)

    def build(self, shares: list[Share]) -> Batch:
        """A batch without adapters; see `row_uses`."""
        sequences = len(shares)
        rows = [self._update_table(share) for share in shares]
        self._tables.take(rows, axis=0, out=self._block_table[:sequences], mode="clip")
        is_decode = all(share.count == 1 and share.samples for share in shares)
        tokens = self._fill_decode(shares) if is_decode else self._fill(shares)
        starts = [0]
        for share in shares:
            starts.append(starts[-1] + share.count)
        self._query_start[: sequences + 1] = starts
        self._context_len[:sequences] = [share.start + share.count for share in shares]
        return Batch(
            token_ids=torch.from_numpy(self._token_ids[:tokens]),
            positions=torch.from_numpy(self._positions[:tokens]),
            slots=torch.from_numpy(self._slots[:tokens]),
            attention=AttentionMetadata(
                query_start=torch.from_numpy(self._query_start[: sequences + 1]),
                context_len=torch.from_numpy(self._context_len[:sequences]),
                block_table=torch.from_numpy(self._block_table[:sequences]),
            ),
            logit_rows=None if is_decode else _logit_rows(shares, starts),
        )

    def _update_table(self, share: Share) -> int:
        """Write what is new of a sequence's blocks; a list that changed hands is another list."""
        row, blocks = share.sequence.table_row, share.sequence.blocks
        known, count = self._written[row]
        if known is not blocks or count != len(blocks):
            self._tables[row, : len(blocks)] = blocks
            self._written[row] = (blocks, len(blocks))
        return row

    def _fill_decode(self, shares: list[Share]) -> int:
        size, count = self._block_tokens, len(shares)
        self._token_ids[:count] = [share.sequence.tokens[share.start] for share in shares]
        self._positions[:count] = [share.start for share in shares]
        self._slots[:count] = [
            share.sequence.blocks[share.start // size] * size + share.start % size
            for share in shares
        ]
        return count

    def _fill(self, shares: list[Share]) -> int:
        first = 0
        for share in shares:
            stop, last = share.start + share.count, first + share.count
            place = np.arange(share.start, stop)
            page, offset = np.divmod(place, self._block_tokens)
            self._token_ids[first:last] = share.sequence.tokens[share.start : stop]
            self._positions[first:last] = place
            blocks = self._tables[share.sequence.table_row, page]
            self._slots[first:last] = blocks.astype(np.int64) * self._block_tokens + offset
            first = last
        # Virtual tokens are no rows of the embedding.
        np.maximum(self._token_ids[:first], 0, out=self._token_ids[:first])
        return first


def _logit_rows(shares: list[Share], starts: list[int]) -> Tensor:
    rows: list[int] = []
    for share, stop in zip(shares, starts[1:], strict=True):
        rows += range(stop - num_logit_rows(share), stop)
    return torch.tensor(rows, dtype=torch.int64)


def row_uses(shares: list[Share]) -> list[RowUse]:
    """Which adapters act on which token rows; one use per run of one recipe."""
    runs: list[list[Any]] = []  # [first row, rows, slots, weights, virtual token]
    row = 0
    for share in shares:
        slots, reach = share.sequence.slots, share.sequence.reach
        if slots:
            weights = share.sequence.weights
            if reach is None:
                _extend(runs, row, share.count, slots, weights)
            else:
                for piece in reach.pieces(share.start, share.start + share.count):
                    _extend(
                        runs,
                        row + piece.start - share.start,
                        piece.stop - piece.start,
                        tuple(slots[i] for i in piece.acting),
                        tuple(weights[i] for i in piece.acting),
                        piece.start if piece.start < reach.num_virtual else -1,
                    )
        row += share.count
    return [RowUse(*run) for run in runs]


def _extend(
    runs: list[list[Any]],
    row: int,
    count: int,
    slots: tuple[int, ...],
    weights: tuple[Any, ...],
    virtual: int = -1,
) -> None:
    """Add a run, to the last one where it continues it."""
    run = [slots, weights, virtual]
    if virtual < 0 and runs and runs[-1][0] + runs[-1][1] == row and runs[-1][2:] == run:
        runs[-1][1] += count
    elif slots:
        runs.append([row, count, *run])
