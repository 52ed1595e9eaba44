"""Small random models written by transformers, and a driver that feeds them in ragged batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from turret_adapters.plan import BASE, StepPlan
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.models.batch import Batch
from turret_server.models.decoder import Decoder

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

# (sequence, first row, rows) of each sequence in a step, and the logit rows -> the adapters
Planner = Callable[[list[tuple[int, int, int]], Tensor], StepPlan]


@pytest.fixture
def save_tiny(tmp_path: Path) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """Make a random model and write it with save_pretrained: (folder, model).

    Freshly initialised models hardly attend and have no bias: an error in either would pass. So
    all weights are drawn anew, with sharp attention, uneven norms and biases of size.
    """

    def save(
        config_class: type[PretrainedConfig], max_shard_size: str = "1GB", **options: object
    ) -> tuple[Path, PreTrainedModel]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_class(**(TINY | options))).eval()
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape)
            if parameter.dim() == 2:
                scale = {"q_proj": 2.0, "k_proj": 2.0}.get(name.split(".")[-2], 1.0)
                values *= scale if "embed" in name else scale * parameter.shape[1] ** -0.5
            else:
                # Gemma's norms add 1 themselves.
                is_gain = "norm" in name and config_class is not Gemma3TextConfig
                values = 0.3 * values + (1.0 if is_gain else 0.0)
            parameter.data.copy_(values)
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        return tmp_path, model

    return save


@pytest.fixture
def ragged_logits() -> Callable[..., list[Tensor]]:
    """See `_ragged_logits`."""
    return _ragged_logits


def _ragged_logits(
    decoder: Decoder,
    sequences: Sequence[list[int]],
    planner: Planner | None = None,
    block_tokens: int = 4,
    share: float = 1.0,
) -> list[Tensor]:
    """Logits at every position [len, vocab] of each sequence, computed together.

    Only a `share` of the positions is asked for; the rest is NaN.

    The sequences join one after the other; each is prefilled in chunks of odd sizes up to its last
    four tokens, which come one by one, as decoding does. So prefills of different depth and
    decodes share a forward pass. Blocks come in shuffled order and are poisoned beforehand.
    """
    rng = random.Random(0)
    need = sum(-(-len(sequence) // block_tokens) for sequence in sequences)
    kv = decoder.allocate_kv(need, block_tokens)
    for cache in kv:
        cache.k.fill_(torch.nan)
        cache.v.fill_(torch.nan)
    free = rng.sample(range(need), need)
    tables: list[list[int]] = [[] for _ in sequences]
    waiting = [_chunks(len(sequence), rng) for sequence in sequences]
    done = [0 for _ in sequences]
    logits: list[list[Tensor]] = [[] for _ in sequences]
    step = 0
    while any(done[i] < len(sequence) for i, sequence in enumerate(sequences)):
        active = [i for i, s in enumerate(sequences) if done[i] < len(s) and i <= step]
        rng.shuffle(active)
        ids, positions, slots, starts, spans = [], [], [], [0], []
        for i in active:
            chunk = next(waiting[i])
            spans.append((i, len(ids), chunk))
            for position in range(done[i], done[i] + chunk):
                if position % block_tokens == 0:
                    tables[i].append(free.pop())
                ids.append(sequences[i][position])
                positions.append(position)
                slots.append(tables[i][-1] * block_tokens + position % block_tokens)
            done[i] += chunk
            starts.append(len(ids))
        width = max(len(tables[i]) for i in active)
        rows = torch.tensor(sorted(rng.sample(range(len(ids)), round(share * len(ids)))))
        batch = Batch(
            token_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            attention=AttentionMetadata(
                query_start=torch.tensor(starts, dtype=torch.int32),
                context_len=torch.tensor([done[i] for i in active], dtype=torch.int32),
                block_table=torch.tensor(
                    [tables[i] + [-1] * (width - len(tables[i])) for i in active],
                    dtype=torch.int32,
                ),
            ),
            logit_rows=rows.long(),
            adapters=BASE if planner is None else planner(spans, rows),
        )
        out = decoder.forward(batch, kv)
        every = torch.full((len(ids), out.shape[1]), torch.nan)
        every[batch.logit_rows] = out
        for i, first, count in spans:
            logits[i].append(every[first : first + count])
        step += 1
    return [torch.cat(parts) for parts in logits]


def _chunks(length: int, rng: random.Random) -> Iterator[int]:
    left = length
    while left > 4:
        chunk = min(rng.choice([3, 5, 7, 11]), left - 4)
        yield chunk
        left -= chunk
    yield from [1] * left
