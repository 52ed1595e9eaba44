"""Models beside the main one that take part in fusions, with decoders, caches and adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from turret_adapters.plan import BASE, StepPlan
from turret_adapters.store import AdapterStore
from turret_server.engine.batch import BatchBuilder, row_uses
from turret_server.engine.blocks import BlockPool
from turret_server.engine.id_map import IdMap
from turret_server.engine.messages import AuxiliaryInfo
from turret_server.engine.rooms import Room
from turret_server.engine.runner import Runner
from turret_server.engine.settings import EngineSettings
from turret_server.engine.shares import Share
from turret_server.engine.stores import Gate, store_limits
from turret_server.errors import StartupError
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder


class Auxiliary:
    """One such model.

    Args:
        name: in messages.
        folder: of the model.
        settings: of the engine.
        device: where it runs.
        dtype: of its weights and its cache.
        main_vocab: rows of the main model's logits.
        wake: see `Engine`.

    Attributes:
        store: its adapters.
        room: what it has for sequences.
        ids: its token ids; None where they are the main model's.

    Raises:
        StartupError: it cannot be served.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: EngineSettings,
        device: torch.device,
        dtype: torch.dtype,
        main_vocab: int,
        wake: Callable[[], None],
    ) -> None:
        size, rows = settings.kv_block_tokens, settings.max_running
        max_len = DecoderConfig.from_folder(folder).max_context
        decoder = Decoder.load(folder, dtype, device, max_len)
        num_blocks = settings.auxiliary_kv_bytes // (decoder.kv_bytes_per_token * size)
        if num_blocks == 0:
            raise StartupError(
                f"the auxiliary {name!r} has no room for keys and values",
                f"a block of {size} tokens takes {decoder.kv_bytes_per_token * size >> 10} KiB",
                "Raise --auxiliary-kv-gib.",
            )
        self.store = AdapterStore(
            decoder.shape,
            replace(
                store_limits(settings, device),
                max_host_bytes=settings.host_adapter_bytes // 4,
                warm=False,  # an adapter may fit several models, and be asked of one
            ),
            device=device,
            dtype=dtype,
            base_bias=decoder.bias,
            on_resident=wake,
        )
        self._main_vocab = main_vocab
        self.ids: IdMap | None = None
        if (ids := settings.auxiliary_ids.get(name)) is not None:
            vocab = decoder.config.vocab_size
            if max(ids) >= vocab:
                raise StartupError(
                    f"the auxiliary {name!r} cannot be served",
                    f"its tokenizer has token {max(ids)}, and its embedding {vocab} rows",
                    "Use the tokenizer that it was trained with.",
                )
            self.ids = IdMap(ids, vocab, main_vocab, device)
        pool, context = BlockPool(num_blocks, size), min(max_len, num_blocks * size)
        self.room = Room(pool, context, Gate(self.store))
        # One block more than the pool knows of, for the rows that pad a graph's batch.
        self._runner = Runner(decoder, decoder.allocate_kv(num_blocks + 1, size), rows)
        self._builder = BatchBuilder(
            max(settings.max_step_tokens, rows),
            rows,
            -(-self.room.max_model_len // size),
            size,
            device,
            self._runner.padding(scratch_block=num_blocks),
        )

    @property
    def info(self) -> AuxiliaryInfo:
        """What the API needs to know of it."""
        return AuxiliaryInfo(
            max_model_len=self.room.max_model_len, kv_blocks=self.room.blocks.num_blocks
        )

    def run(self, shares: list[Share], drawn: Tensor | None) -> Tensor:
        """Its part of a step.

        Args:
            shares: of members that run it.
            drawn: as for `BatchBuilder.build`.

        Returns:
            float32 [L, V] of the main model's tokens; those that this one lacks are banned.
        """
        batch = self._builder.build(shares, drawn)
        if self.ids is not None:
            batch.token_ids = self.ids.own(batch.token_ids)
        if uses := row_uses(shares, len(batch.token_ids)):
            batch.adapters = StepPlan(self.store.banks, uses, batch.logit_rows) or BASE
        logits = self._runner.forward(batch)
        if batch.logit_rows is None:
            logits = logits[: len(shares)]
        if self.ids is not None:
            return self.ids.to_main(logits)
        # Both know the same tokens, but may be padded to other sizes.
        missing = self._main_vocab - logits.shape[1]
        if missing <= 0:
            return logits[:, : self._main_vocab]
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
