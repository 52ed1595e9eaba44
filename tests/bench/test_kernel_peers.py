"""That other servers' kernels get the operands that they document.

They stand in here in plain torch, segment by segment; `torch.bmm` says what has to come out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from bench.kernels import low_rank
from torch import Tensor

# Site, k, widths, rows, adapters, rank.
DECODE = ("qkv", 64, (32, 16, 16), 80, 2, 16)
PREFILL = ("down", 48, (64,), 320, 1, 8)


@pytest.mark.parametrize("size", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("peer", ["vllm", "sglang csgmv", "sglang triton_v2"])
def test_a_peer_does_what_gathered_products_do(
    peer: str,
    size: tuple[str, int, tuple[int, ...], int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _install_vllm(monkeypatch)
    _install_sglang(monkeypatch)
    monkeypatch.setattr(low_rank, "random", torch.randn)
    found = []
    for who in ("torch.bmm", peer):
        torch.manual_seed(0)
        calls = low_rank.case(*size).make("cpu", 3)[who]
        found.append([call().clone() for call in calls])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_a_peer_that_cannot_be_imported_fails_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _install(monkeypatch, "vllm")
    (call, *_) = low_rank.case(*DECODE).make("cpu", 2)["vllm"]
    with pytest.raises(ImportError):
        call()


def test_addresses_that_vllm_remembers_are_forgotten_with_the_next_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembered = _install_vllm(monkeypatch)
    monkeypatch.setattr(low_rank, "random", torch.randn)
    for size in (DECODE, PREFILL):
        remembered[17] = "strides of other weights"
        low_rank.case(*size).make("cpu", 1)["vllm"][0]()
        assert not remembered


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    """A module, in the packages of its name."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = ModuleType(path)
        module.__spec__, module.__path__ = ModuleSpec(path, None, is_package=True), []
        if path == name or path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(attributes)


def _install_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[int, object]:
    """Returns what its tables by address are."""

    class Meta:
        @staticmethod
        def make(max_loras: int, max_num_tokens: int, device: torch.device) -> Meta:
            return Meta()

        def prepare_tensors(self, token_lora_mapping: Tensor) -> None:
            self.mapping = token_lora_mapping

        def meta_args(self, token_nums: int, specialize_active_lora: bool) -> tuple[Tensor]:
            assert specialize_active_lora
            return (self.mapping[:token_nums],)

    def shrink(x: Tensor, a: list[Tensor], hidden: Tensor, mapping: Tensor, scale: float) -> None:
        for part, out in zip(a, hidden, strict=True):
            out.copy_(_by_slot(x, part, mapping) * scale)

    def expand(
        hidden: Tensor,
        b: list[Tensor],
        y: Tensor,
        mapping: Tensor,
        offset_start: int,
        add_inputs: bool,
    ) -> None:
        assert add_inputs
        for part, values in zip(b, hidden, strict=True):
            offset_end = offset_start + part.shape[1]
            y[:, offset_start:offset_end] += _by_slot(values, part, mapping)
            offset_start = offset_end

    remembered: dict[int, object] = {}
    utils = SimpleNamespace(_LORA_A_PTR_DICT=remembered, _LORA_B_PTR_DICT={})
    _install(
        monkeypatch,
        "vllm.lora.ops.triton_ops",
        LoRAKernelMeta=Meta,
        lora_shrink=shrink,
        lora_expand=expand,
        utils=utils,
    )
    return remembered


@dataclass
class _Batch:
    """SGLang's `LoRABatchInfo`."""

    use_cuda_graph: bool
    bs: int
    num_segments: int
    seg_indptr: Tensor
    weight_indices: Tensor
    lora_ranks: Tensor
    scalings: Tensor
    max_len: int
    seg_lens: Tensor | None
    permutation: Tensor

    def slots(self) -> Tensor:
        """By row."""
        lengths = self.seg_indptr.diff()
        assert len(lengths) == self.num_segments
        assert lengths.max() <= self.max_len
        found = torch.empty(self.bs, dtype=torch.int32)
        found[self.permutation] = self.weight_indices.repeat_interleave(lengths)
        return found


class _Runner:
    """SGLang's `DenseLoraRunner`."""

    def __init__(self, workspace: object, *, max_loras: int, device: torch.device) -> None:
        self.max_loras = max_loras

    def begin_batch(
        self,
        *,
        token_slots: Tensor,
        lora_ranks: Tensor,
        scalings: Tensor,
        num_tokens: int,
        phase: str,
        graph_mode: bool,
    ) -> None:
        assert phase == ("prefill" if num_tokens > 256 else "decode")
        assert len(lora_ranks) == len(scalings) == self.max_loras
        assert graph_mode
        self.slots, self.rank = token_slots, int(lora_ranks[0])

    def plan_for(self, kind: str, max_rank: int, k: int, width: int, *, num_tokens: int) -> str:
        return f"{kind} {max_rank} {k} {width} {num_tokens}"

    def run_a(self, x: Tensor, a: Tensor, *, stack: int, plan: str) -> Tensor:
        assert a.shape == (self.max_loras, stack * self.rank, x.shape[1])
        self.k = x.shape[1]
        return _by_slot(x, a, self.slots)

    def run_b(
        self, bridge: Tensor, b: Tensor, out: Tensor, *, offsets: tuple[int, ...], plan: str
    ) -> None:
        assert plan == f"linear {b.shape[2]} {self.k} {out.shape[1]} {len(out)}"
        assert b.shape == (self.max_loras, out.shape[1], self.rank)
        _expand_stacked(bridge, b, out, offsets, self.slots)


def _install_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink(x: Tensor, weights: Tensor, batch_info: _Batch, num_slices: int) -> Tensor:
        assert weights.is_contiguous()
        assert weights.shape[1] == num_slices * int(batch_info.lora_ranks[0])
        return _by_slot(x, weights, batch_info.slots())

    def expand(
        x: Tensor,
        weights: Tensor,
        batch_info: _Batch,
        slice_offsets: Tensor,
        max_slice_size: int,
        base_output: Tensor,
        slice_offsets_cpu: Tensor,
    ) -> None:
        assert weights.is_contiguous()
        assert slice_offsets.tolist() == slice_offsets_cpu.tolist()
        assert max_slice_size == slice_offsets.diff().max()
        _expand_stacked(x, weights, base_output, slice_offsets.tolist(), batch_info.slots())

    def segments(
        weight_indices: list[int], pruned_lens: list[int], chunk_size: int
    ) -> tuple[list[int], list[int]]:
        slots, lengths = [], []
        for slot, rows in zip(weight_indices, pruned_lens, strict=True):
            for start in range(0, rows, chunk_size):
                slots.append(slot)
                lengths.append(min(chunk_size, rows - start))
        return slots, lengths

    kernels, server = "sglang.kernels.ops.lora.dense", "sglang.srt.lora"
    for name, attributes in {
        f"{kernels}.chunked_sgmv_shrink": {"chunked_sgmv_lora_shrink_forward": shrink},
        f"{kernels}.chunked_sgmv_expand": {"chunked_sgmv_lora_expand_forward": expand},
        f"{server}.utils": {
            "LoRABatchInfo": _Batch,
            "merge_and_chunk_segments": segments,
            "Phase": SimpleNamespace(DECODE="decode", PREFILL="prefill"),
        },
        f"{server}.dense.plan": {"DenseLoraKind": SimpleNamespace(LINEAR="linear")},
        f"{server}.dense.runner": {"DenseLoraRunner": _Runner},
        f"{server}.workspace": {"LoraWorkspace": object},
    }.items():
        _install(monkeypatch, name, **attributes)


def _by_slot(x: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
    """Rows of x by the transposed weights [slots, out, in] of their slots."""
    out = x.new_empty(len(x), weights.shape[1])
    for slot in slots.unique().tolist():
        out[slots == slot] = x[slots == slot] @ weights[slot].mT
    return out


def _expand_stacked(
    hidden: Tensor, b: Tensor, y: Tensor, offsets: Sequence[int], slots: Tensor
) -> None:
    """The slices' hidden values lie side by side."""
    rank = b.shape[2]
    for i in range(len(offsets) - 1):
        columns = slice(offsets[i], offsets[i + 1])
        y[:, columns] += _by_slot(hidden[:, i * rank : (i + 1) * rank], b[:, columns], slots)
