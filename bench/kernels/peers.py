"""The LoRA kernels of vLLM and SGLang, called as their servers call them.

A call is what one layer of a step adds: `y += x A B`. What such a server prepares once in a step is
prepared in the first call, which is not timed. It has as many slots as the step has adapters. vLLM
is checked in release 0.32.0, SGLang in 0.5.23; another one may fail, in its own row of the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from bench.kernels.case import Calls
from bench.kernels.operands import bind, changed
from torch import Tensor

PACKAGES = ("vllm", "sglang")
_Layer = Callable[..., object]  # of its weights


@dataclass(frozen=True)
class _Step:
    """What the layers of a step share.

    Attributes:
        y: [rows, sum of widths].
        x: [rows, k]; the adapters have equally many, one after another.
        widths: of the slices.
        rank: of all adapters.
        adapters: how many.
    """

    y: Tensor
    x: Tensor
    widths: list[int]
    rank: int
    adapters: int

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def slots(self) -> Tensor:
        """int32 [rows]."""
        return self.ints(range(self.adapters)).repeat_interleave(self.rows // self.adapters)

    @property
    def offsets(self) -> list[int]:
        """Of the slices, and the end."""
        return [sum(self.widths[:i]) for i in range(len(self.widths) + 1)]

    def ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.x.device)


def peer_calls(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], adapters: int
) -> dict[str, Calls]:
    """By peer, those whose package is installed.

    Args:
        y: [rows, sum of widths].
        x: [rows, k]; a step's adapters have equally many, one after another.
        a: by slice, [slots, rank, k]; every call takes the next `adapters` slots.
        b: likewise, [slots, rank, width].
        adapters: of a step.
    """
    step = _Step(y, x, [part.shape[2] for part in b], a[0].shape[1], adapters)
    found: dict[str, Calls] = {}
    if find_spec("vllm"):
        factors = (*a, *(part.mT.contiguous() for part in b))
        found["vllm"] = _calls(_vllm, step, factors)
    if find_spec("sglang"):
        stacked = torch.cat(a, 1), torch.cat(b, 2).mT.contiguous()
        found["sglang csgmv"] = _calls(_sglang_csgmv, step, stacked)
        found["sglang triton_v2"] = _calls(_sglang_triton_v2, step, stacked)
    return found


def _calls(prepare: Callable[[_Step], _Layer], step: _Step, factors: Sequence[Tensor]) -> Calls:
    """What `prepare` returns, on the factors of each step's slots."""

    @cache
    def prepared() -> _Layer:
        return prepare(step)

    layers = list(zip(*(part.split(step.adapters) for part in factors), strict=True))
    return bind(changed(step.y, lambda *layer: prepared()(*layer)), layers)


def _vllm(step: _Step) -> _Layer:
    """`PunicaWrapperGPU.add_lora_linear`, in grids for as many adapters as there are.

    Its layer takes every slice's A [adapters, rank, k], then every slice's B [.., width, rank].
    """
    from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink, utils

    # It keeps strides by address, and here an address has other weights in the next case.
    utils._LORA_A_PTR_DICT.clear()
    utils._LORA_B_PTR_DICT.clear()
    meta = LoRAKernelMeta.make(step.adapters, step.rows, step.x.device)
    meta.prepare_tensors(step.slots)
    arguments = meta.meta_args(step.rows, True)
    slices = len(step.widths)
    hidden = torch.empty(slices, step.rows, step.rank, device=step.x.device)

    def layer(*factors: Tensor) -> None:
        a, b = list(factors[:slices]), list(factors[slices:])
        lora_shrink(step.x, a, hidden, *arguments, 1.0)
        lora_expand(hidden, b, step.y, *arguments, offset_start=0, add_inputs=True)

    return layer


def _sglang_csgmv(step: _Step) -> _Layer:
    """`ChunkedSgmvLoRABackend.run_qkv_lora`, in its default chunks of 16 rows, none of them unused.

    Its layer takes A [adapters, slices x rank, k] and B [adapters, sum of widths, rank].
    """
    # Its own cache of compiled kernels leaves out the rank, of which a server has one.
    os.environ["SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"] = "0"
    from sglang.kernels.ops.lora.dense.chunked_sgmv_expand import chunked_sgmv_lora_expand_forward
    from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import chunked_sgmv_lora_shrink_forward
    from sglang.srt.lora.utils import LoRABatchInfo, merge_and_chunk_segments

    rows_of_each = [step.rows // step.adapters] * step.adapters
    slots, lengths = merge_and_chunk_segments(list(range(step.adapters)), rows_of_each, 16)
    batch = LoRABatchInfo(
        use_cuda_graph=False,
        bs=step.rows,
        num_segments=len(slots),
        seg_indptr=step.ints([0, *lengths]).cumsum(0, dtype=torch.int32),
        weight_indices=step.ints(slots),
        lora_ranks=step.ints([step.rank] * step.adapters),
        scalings=torch.ones(step.adapters, device=step.x.device),
        max_len=16,
        seg_lens=None,
        permutation=step.ints(range(step.rows)),
    )
    offsets, slices = torch.tensor(step.offsets), len(step.widths)
    widths = step.ints(step.offsets), max(step.widths)

    def layer(a: Tensor, b: Tensor) -> None:
        hidden = chunked_sgmv_lora_shrink_forward(step.x, a, batch, slices)
        chunked_sgmv_lora_expand_forward(hidden, b, batch, *widths, step.y, offsets)

    return layer


def _sglang_triton_v2(step: _Step) -> _Layer:
    """`TritonV2LoRABackend.forward_with_base`, with the plan that its table has for the site.

    The plan's overlap with the base's product is left out: here is no base, and a shrink beside it
    takes its time in another place. Factors as in `_sglang_csgmv`.
    """
    from sglang.srt.lora.dense.plan import DenseLoraKind
    from sglang.srt.lora.dense.runner import DenseLoraRunner
    from sglang.srt.lora.utils import Phase
    from sglang.srt.lora.workspace import LoraWorkspace

    device = step.x.device
    runner = DenseLoraRunner(LoraWorkspace(), max_loras=step.adapters, device=device)
    runner.begin_batch(
        token_slots=step.slots,
        lora_ranks=step.ints([step.rank] * step.adapters),
        scalings=torch.ones(step.adapters, device=device),
        num_tokens=step.rows,
        phase=Phase.DECODE if step.rows <= 256 else Phase.PREFILL,
        graph_mode=True,
    )
    k, width = step.x.shape[1], sum(step.widths)
    plan = runner.plan_for(DenseLoraKind.LINEAR, step.rank, k, width, num_tokens=step.rows)
    offsets = tuple(step.offsets)

    def layer(a: Tensor, b: Tensor) -> None:
        hidden = runner.run_a(step.x, a, stack=len(step.widths), plan=plan)
        runner.run_b(hidden, b, step.y, offsets=offsets, plan=plan)

    return layer
