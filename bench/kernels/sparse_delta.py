"""Sparse changes of Llama-3-8B's o, beside the same changes dense."""

from __future__ import annotations

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.operands import bind, changed, random, split_rows, torch_peers
from torch import Tensor

from turret_kernels.sparse_delta import SparseMatrix, SparseTable, sparse_delta

# Rows, adapters, width, non-zeros per output.
SIZES = [(*step, 4096, each) for each in (4, 40) for step in ((8, 1), (8, 8), (64, 8), (2048, 1))]
TINY = [(4, 2, 32, 3)]
_DENSE_BYTES = 8 << 30


def case(rows: int, adapters: int, width: int, each: int) -> Case:
    """`each` of an output's `width` inputs."""
    parts = {
        "y in": (rows, width, 2),
        "y out": (rows, width, 2),
        "x": (rows, width, 2),
        "values, columns": (adapters, width, each, 2 + 4),
        "rows": (adapters, width, 8),
    }

    def make(device: str, sets: int) -> dict[str, Calls]:
        slots = sets * adapters
        table = SparseTable(slots, width, width, torch.device(device))
        first = torch.arange(0, width * each + 1, each, device=device)
        for slot in range(slots):
            columns = torch.randint(0, width, (width * each,), device=device, dtype=torch.int32)
            table.set(slot, SparseMatrix(first, columns, random(width * each, device=device)))
        x, y = random(rows, width, device=device), random(rows, width, device=device)
        steps = [(split_rows(rows, adapters, step, device),) for step in range(sets)]
        run_ours = changed(y, lambda entries: sparse_delta(y, x, table, entries))
        calls = {"turret": bind(run_ours, steps)}
        # Matrices of so many sets; each is larger than an L2 anyway.
        dense_sets = max(1, min(sets, _DENSE_BYTES // (adapters * width * width * 2)))
        dense = x.new_zeros(dense_sets * adapters, width, width)
        outputs = torch.arange(width, device=device).repeat_interleave(each)
        for weights, matrix in zip(dense, table.matrices, strict=False):
            assert matrix is not None
            weights.index_put_((outputs, matrix.columns.long()), matrix.values, accumulate=True)

        def run(weights: Tensor) -> Tensor:
            change = x.view(adapters, -1, width) @ weights.mT
            return y.add_(change.view(rows, width))

        return {**calls, **torch_peers(run, [(part,) for part in dense.split(adapters)])}

    name = f"{rows}x{width}, {adapters} adapters, {each} per output"
    return Case(name, parts, make, share=0.4, flop=2 * rows * width * each)
