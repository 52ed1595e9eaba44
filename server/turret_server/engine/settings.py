"""What the engine process is told at its start."""

from __future__ import annotations

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the engine. Lengths are tokens, sizes bytes, times seconds."""

    model: str  # folder
    device: str = "cpu"  # or "cuda", "cuda:N", or "auto": a GPU where there is one
    dtype: str = "bfloat16"  # or "float16", "float32", or "auto": what the device computes well
    quantization: str = "none"  # or "int8", "int4", "fp8": of the base's linears
    max_model_len: int = 0  # 0 = the model's own, as far as memory allows
    kv_cache_bytes: int = 1 << 30  # of each process; 0 = what suits the device
    kv_block_tokens: int = 32
    max_running: int = 64
    max_step_tokens: int = 256
    max_waiting: int = 1024
    overlap: str = "auto"  # or "on", "off": launch a step while the one before it runs
    max_resident_adapters: int = 64
    adapter_rank_rows: int = 1024  # per linear, all resident adapters together
    adapter_ternary_rows: int | None = None  # more, for ternary ones; None = what suits the device
    adapter_delta_bytes: int = 1 << 30  # sparse deltas; as much again for changed token rows
    sparse_mlp_bytes: int = 1 << 30  # second copies of MLP weights, for CATS
    host_adapter_bytes: int = 256 << 20
    eos_token_ids: tuple[int, ...] = ()  # for grammars
    threads: int = 0  # 0 = all this process may use; shared out where processes are several
    tensor_parallel: int = 1  # processes, each with a shard of the model, a cache and the adapters
    auxiliaries: dict[str, str] = {}  # folders of models that take part in fusions, by name
    # By the main model's token ids, those of an auxiliary with another vocabulary; -1: it has none.
    auxiliary_ids: dict[str, tuple[int, ...]] = {}
    auxiliary_kv_bytes: int = 1 << 28  # of each of them
    faults: bool = False  # tests only: obey InjectFault
