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
    """Builds batches over a block table that is kept from step to step.

    Args:
        max_running: rows of the table.
        max_blocks: blocks of the longest sequence.
        block_tokens: tokens of a block.
    """

    def __init__(self, max_running: int, max_blocks: int, block_tokens: int) -> None:
        self._table = np.zeros((max_running, max_blocks), dtype=np.int32)
        self._block_tokens = block_tokens

    def build(self, shares: list[Share]) -> Batch:
        """A batch without adapters; see `row_uses`."""
        tokens: list[int] = []
        positions: list[np.ndarray] = []
        slots: list[np.ndarray] = []
        logit_rows: list[int] = []
        starts, rows, width = [0], [], 1
        for share in shares:
            sequence, stop = share.sequence, share.start + share.count
            blocks = sequence.blocks
            # The row is written whole: a table row changes hands, and a copy of 4 bytes a block
            # costs less than keeping track.
            self._table[sequence.table_row, : len(blocks)] = blocks
            tokens += sequence.tokens[share.start : stop]
            place = np.arange(share.start, stop)
            page, offset = np.divmod(place, self._block_tokens)
            positions.append(place)
            slots.append(self._table[sequence.table_row, page] * self._block_tokens + offset)
            starts.append(starts[-1] + share.count)
            logit_rows += range(starts[-1] - num_logit_rows(share), starts[-1])
            rows.append(sequence.table_row)
            width = max(width, len(blocks))
        return Batch(
            token_ids=torch.tensor(tokens),
            positions=torch.from_numpy(np.concatenate(positions)),
            slots=torch.from_numpy(np.concatenate(slots).astype(np.int64)),
            attention=AttentionMetadata(
                query_start=torch.tensor(starts, dtype=torch.int32),
                context_len=_int32([share.start + share.count for share in shares]),
                block_table=torch.from_numpy(self._table[rows, :width]),
            ),
            logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        )


def row_uses(shares: list[Share]) -> list[RowUse]:
    """Which adapters act on which token rows; one use per run of one recipe."""
    runs: list[list[Any]] = []  # [first row, rows, slots, weights]
    row = 0
    for share in shares:
        slots = share.sequence.slots
        if slots:
            weights = tuple(use.weight for use in share.sequence.request.adapters)
            if runs and runs[-1][0] + runs[-1][1] == row and runs[-1][2:] == [slots, weights]:
                runs[-1][1] += share.count
            else:
                runs.append([row, share.count, slots, weights])
        row += share.count
    return [RowUse(*run) for run in runs]


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
