"""From the scheduler's shares to the decoder's batch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turret_adapters.plan import RowUse
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.engine.sampler import num_logit_rows
from turret_server.engine.shares import Share
from turret_server.engine.staging import Staging
from turret_server.models.batch import Batch


@dataclass(frozen=True, slots=True)
class Padding:
    """How decode steps are padded to few numbers of rows.

    Attributes:
        buckets: the numbers, ascending; a step with more rows than the last is left as it is.
        scratch_block: a block of the cache that belongs to no sequence.
    """

    buckets: tuple[int, ...]
    scratch_block: int

    def rows(self, rows: int) -> int:
        """The number that a step of so many rows is padded to."""
        place = bisect_left(self.buckets, rows)
        return self.buckets[place] if place < len(self.buckets) else rows


class BatchBuilder:
    """Builds batches in buffers of its own: a batch is valid until the next is built.

    Args:
        max_tokens: most token rows in one step.
        max_running: most sequences in one step.
        max_blocks: blocks of the longest sequence.
        block_tokens: tokens of a block.
        device: where the batch is read.
        padding: grows a decode step to a number of rows that graphs are recorded for.
    """

    def __init__(
        self,
        max_tokens: int,
        max_running: int,
        max_blocks: int,
        block_tokens: int,
        device: torch.device | None = None,
        padding: Padding | None = None,
    ) -> None:
        self._block_tokens = block_tokens
        self._padding = padding
        long, short = torch.int64, torch.int32
        self._staging = Staging(
            {
                "token_ids": ((max_tokens,), long),
                "positions": ((max_tokens,), long),
                "slots": ((max_tokens,), long),
                "drawn_rows": ((max_running,), long),
                "draw_rows": ((max_running,), long),
                "query_start": ((max_running + 1,), short),
                "context_len": ((max_running,), short),
                "block_table": ((max_running, max_blocks), short),
            },
            device or torch.device("cpu"),
        )
        self._host = self._staging.host
        # By the scheduler's table rows, kept from step to step.
        self._tables = np.zeros((max_running, max_blocks), dtype=np.int32)
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * max_running

    def build(self, shares: list[Share], drawn: Tensor | None = None) -> Batch:
        """A batch without adapters; see `row_uses`.

        Args:
            shares: of the step.
            drawn: int64 [R] on the device, the tokens that sequences' `draw_row` points at.
        """
        self._staging.wait()
        host, sequences = self._host, len(shares)
        rows = [self._update_table(share) for share in shares]
        self._tables.take(rows, axis=0, out=host["block_table"][:sequences], mode="clip")
        is_decode = all(share.count == 1 and share.samples for share in shares)
        tokens = self._fill_decode(shares) if is_decode else self._fill(shares)
        starts = [0]
        for share in shares:
            starts.append(starts[-1] + share.count)
        host["query_start"][: sequences + 1] = starts
        host["context_len"][:sequences] = [share.start + share.count for share in shares]
        if is_decode and self._padding is not None:
            tokens = sequences = self._pad(sequences, self._padding)
        unknown = self._find_drawn(shares, starts)
        self._staging.send("block_table", sequences)
        device = self._staging.device
        if unknown:
            assert drawn is not None
            values = drawn.index_select(0, device["draw_rows"][:unknown])
            device["token_ids"].index_copy_(0, device["drawn_rows"][:unknown], values)
        return Batch(
            token_ids=device["token_ids"][:tokens],
            positions=device["positions"][:tokens],
            slots=device["slots"][:tokens],
            attention=AttentionMetadata(
                query_start=device["query_start"][: sequences + 1],
                context_len=device["context_len"][:sequences],
                block_table=device["block_table"][:sequences],
            ),
            logit_rows=None if is_decode else _logit_rows(shares, starts),
        )

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """What the batch that was built last holds, on the host.

        Returns:
            By name: token_ids, positions and slots int64 [T]; query_start int32 [S + 1];
            context_len int32 [S]; block_table int32 [S, blocks of the longest].
        """
        tokens, sequences = batch.token_ids.shape[0], batch.attention.context_len.shape[0]
        host = self._host
        context_len = host["context_len"][:sequences]
        blocks = -(-int(context_len.max()) // self._block_tokens)
        return {
            **{name: host[name][:tokens] for name in ("token_ids", "positions", "slots")},
            "query_start": host["query_start"][: sequences + 1],
            "context_len": context_len,
            "block_table": host["block_table"][:sequences, :blocks],
        }

    def _find_drawn(self, shares: list[Share], starts: list[int]) -> int:
        """Where tokens go that only the device knows, and whence they come; how many there are."""
        found = [
            (stop - 1, share.sequence.draw_row)
            for stop, share in zip(starts[1:], shares, strict=True)
            if share.sequence.draw_row >= 0
        ]
        if found:
            host, count = self._host, len(found)
            host["drawn_rows"][:count], host["draw_rows"][:count] = zip(*found, strict=True)
        return len(found)

    def _pad(self, rows: int, padding: Padding) -> int:
        """Add rows that read and write the scratch block alone."""
        host, padded = self._host, padding.rows(rows)
        host["token_ids"][rows:padded] = 0
        host["positions"][rows:padded] = 0
        host["slots"][rows:padded] = padding.scratch_block * self._block_tokens
        host["query_start"][rows : padded + 1] = np.arange(rows, padded + 1)
        host["context_len"][rows:padded] = 1
        host["block_table"][rows:padded, 0] = padding.scratch_block
        return padded

    def _update_table(self, share: Share) -> int:
        """Write what is new of a sequence's blocks; a list that changed hands is another list."""
        row, blocks = share.sequence.table_row, share.sequence.blocks
        known, count = self._written[row]
        if known is not blocks or count != len(blocks):
            self._tables[row, : len(blocks)] = blocks
            self._written[row] = (blocks, len(blocks))
        return row

    def _fill_decode(self, shares: list[Share]) -> int:
        host, size, count = self._host, self._block_tokens, len(shares)
        host["token_ids"][:count] = [share.sequence.tokens[share.start] for share in shares]
        host["positions"][:count] = [share.start for share in shares]
        host["slots"][:count] = [
            share.sequence.blocks[share.start // size] * size + share.start % size
            for share in shares
        ]
        return count

    def _fill(self, shares: list[Share]) -> int:
        host, first = self._host, 0
        for share in shares:
            stop, last = share.start + share.count, first + share.count
            place = np.arange(share.start, stop)
            page, offset = np.divmod(place, self._block_tokens)
            host["token_ids"][first:last] = share.sequence.tokens[share.start : stop]
            host["positions"][first:last] = place
            blocks = self._tables[share.sequence.table_row, page]
            host["slots"][first:last] = blocks.astype(np.int64) * self._block_tokens + offset
            first = last
        # Virtual tokens are no rows of the embedding.
        np.maximum(host["token_ids"][:first], 0, out=host["token_ids"][:first])
        return first


def _logit_rows(shares: list[Share], starts: list[int]) -> Tensor:
    rows: list[int] = []
    for share, stop in zip(shares, starts[1:], strict=True):
        rows += range(stop - num_logit_rows(share), stop)
    return torch.tensor(rows, dtype=torch.int64)


def row_uses(shares: list[Share], num_rows: int = 0) -> list[RowUse]:
    """Which adapters act on which token rows; one use per run of one recipe.

    Args:
        shares: the step's.
        num_rows: of the batch. Those that pad it run what the last of the shares' runs, so that
            where all rows have a threshold, they still do (CATS then skips neurons).
    """
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
    if runs and runs[-1][0] + runs[-1][1] == row and runs[-1][4] < 0:
        runs[-1][1] += max(0, num_rows - row)
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
