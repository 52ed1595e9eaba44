"""Models beside the main one that take part in fusions: each with its decoder and its cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from turret_server.engine.batch import BatchBuilder
from turret_server.engine.blocks import BlockPool
from turret_server.engine.messages import AuxiliaryInfo
from turret_server.engine.runner import Runner
from turret_server.engine.scheduler import Room, Share
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder


class Auxiliary:
    """One such model, without adapters.

    Args:
        name: in messages.
        folder: of the model.
        settings: of the engine.
        device: where it runs.
        dtype: of its weights and its cache.

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
        self.room = Room(BlockPool(num_blocks, size), min(max_len, num_blocks * size))
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

    def run(self, shares: list[Share], vocab: int) -> Tensor:
        """Its part of a step.

        Args:
            shares: of members that run it.
            vocab: of the main model. Both know the same tokens, but may be padded to other sizes:
                what this one lacks is banned.

        Returns:
            float32 [L, vocab].
        """
        batch = self._builder.build(shares)
        logits = self._runner.forward(batch)
        if batch.logit_rows is None:
            logits = logits[: len(shares)]
        missing = vocab - logits.shape[1]
        if missing <= 0:
            return logits[:, :vocab]
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
