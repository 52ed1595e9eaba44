"""Models that score a sequence: those that transformers calls `...ForSequenceClassification`.

Their configurations are allow-listed as those of served models are; weights are safetensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from turret_kernels.paged_attention import AttentionMetadata
from turret_server.models.batch import Batch
from turret_server.models.config import CLASSIFYING_DECODERS, DecoderConfig, open_config
from turret_server.models.config_fields import Fields
from turret_server.models.decoder import Decoder
from turret_server.models.encoder import Encoder
from turret_server.models.encoder_config import ENCODERS, EncoderConfig
from turret_server.models.weights import load_weights

_BLOCK_TOKENS = 32


class _Model(Protocol):
    """What both kinds of model are to the classifier."""

    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Tensor:
        """float32 [N, labels] for N inputs."""
        ...


class Classifier:
    """A model and the label that counts.

    Attributes:
        max_length: the longest input, in tokens.
        vocab_size: token ids are below it.
        is_encoder: it reads in both directions, and knows pairs by token types.
        num_labels: outputs; of one, the output is the score, of several, a label's log-probability.
    """

    def __init__(
        self, model: _Model, label: int, *, max_length: int, vocab_size: int, num_labels: int
    ) -> None:
        self._model, self._label = model, label
        self.max_length, self.vocab_size, self.num_labels = max_length, vocab_size, num_labels
        self.is_encoder = isinstance(model, Encoder)

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype, device: torch.device, max_length: int, label: str
    ) -> Classifier:
        """Load the model in `folder`.

        Args:
            folder: holds `config.json` and safetensors.
            dtype: of decoders; encoders are small, and run in float32.
            device: where it runs.
            max_length: of inputs, in tokens; less where the model takes less.
            label: whose log-probability is the score, by name or number; "" for a model of one.

        Raises:
            StartupError: the model cannot be served exactly as its files ask, or has not the label.
        """
        fields = open_config(folder)
        named = fields.take("architectures")
        architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
        if architecture not in (*ENCODERS, *CLASSIFYING_DECODERS):
            known = ", ".join((*ENCODERS, *CLASSIFYING_DECODERS))
            fields.refuse("architectures", "it does not score", f"Serve one of: {known}.")
        labels = _labels(fields)
        number = _choose(fields, labels, label)
        model: _Model
        if architecture in ENCODERS:
            config = EncoderConfig.from_fields(fields, architecture, len(labels))
            model, longest = Encoder.load(folder, config, device), config.max_length
        else:
            config = DecoderConfig.from_fields(fields, CLASSIFYING_DECODERS[architecture])
            longest = config.max_context
            weights = load_weights(folder, config, dtype, device, num_labels=len(labels))
            decoder = Decoder(config, weights, min(longest, max_length), str(folder))
            model = _LastToken(decoder)
        return cls(
            model,
            number,
            max_length=min(longest, max_length),
            vocab_size=config.vocab_size,
            num_labels=len(labels),
        )

    @torch.inference_mode()
    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Tensor:
        """What the model puts out for each input: float32 [N, labels].

        Args:
            ids: token ids; 1 to `max_length` of each input.
            types: token types, for encoders.
        """
        return self._model.logits(ids, types)

    def scores(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> list[float]:
        """The score of each input; arguments as for `logits`."""
        logits = self.logits(ids, types)
        if self.num_labels > 1:
            logits = logits.log_softmax(-1)
        # Every score is a number, so that there is an order; of damaged weights a bad one.
        worst = torch.finfo(torch.float32).min
        return torch.nan_to_num(logits[:, self._label].float(), nan=worst).tolist()


class _LastToken:
    """A decoder whose head classifies what stands at the last token."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Tensor:
        """float32 [N, labels]; types are of no meaning to a decoder."""
        decoder, size = self._decoder, _BLOCK_TOKENS
        lengths = [len(row) for row in ids]
        starts = [0, *accumulate(lengths)]
        blocks = [-(-length // size) for length in lengths]
        firsts = [0, *accumulate(blocks)]
        table = torch.zeros(len(ids), max(blocks), dtype=torch.int32)
        for row, (first, count) in enumerate(zip(firsts, blocks, strict=False)):
            table[row, :count] = torch.arange(first, first + count)
        slots = [firsts[row] * size + i for row, n in enumerate(lengths) for i in range(n)]
        device = decoder.device
        batch = Batch(
            token_ids=torch.tensor([token for row in ids for token in row], device=device),
            positions=torch.tensor([i for n in lengths for i in range(n)], device=device),
            slots=torch.tensor(slots, device=device),
            attention=AttentionMetadata(
                query_start=torch.tensor(starts, dtype=torch.int32, device=device),
                context_len=torch.tensor(lengths, dtype=torch.int32, device=device),
                block_table=table.to(device),
            ),
            logit_rows=torch.tensor([stop - 1 for stop in starts[1:]]),
        )
        return decoder.forward(batch, decoder.allocate_kv(firsts[-1], size))


def _labels(fields: Fields) -> list[str]:
    """The names of the outputs; transformers has two where a file says nothing."""
    names, count = fields.take("id2label"), fields.take("num_labels")
    fields.take("label2id")
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(fields.count("num_labels", 2))}
    if not isinstance(names, dict) or not names or len(names) > 1024:
        fields.refuse("id2label", "it names the outputs by their numbers")
    found = [names.get(str(i)) for i in range(len(names))]
    if not all(isinstance(name, str) for name in found):
        fields.refuse("id2label", "it names the outputs by their numbers")
    if count not in (None, len(found)):
        fields.refuse("num_labels", f"id2label names {len(found)}")
    return [str(name) for name in found]


def _choose(fields: Fields, labels: list[str], label: str) -> int:
    """The number of the label that counts."""
    if label in labels:
        return labels.index(label)
    if label.isascii() and label.isdigit() and int(label) < len(labels):
        return int(label)
    if not label and len(labels) == 1:
        return 0
    why = (
        f"there is no label {label!r}" if label else "its probabilities have no order of their own"
    )
    fields.refuse("id2label", why, f"Name a label of the scorer: {', '.join(labels[:16])}.")
