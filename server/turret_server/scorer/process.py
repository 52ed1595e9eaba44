"""One scorer's process: `python -m turret_server.scorer.process`, messages on stdin and stdout.

A process of its own: a forward pass of a scorer takes as long as tens of decode steps, and would
hold up every stream if it ran between them. Its priority is lower than the engine's.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from turret_kernels import native
from turret_server.engine.device import resolve_device, resolve_dtype
from turret_server.engine.lifetime import die_with_parent
from turret_server.errors import StartupError
from turret_server.models.classifier import Classifier
from turret_server.pipeline.frames import read_frame, write_frame
from turret_server.scorer.messages import (
    Refused,
    ScorerReady,
    ScorerSettings,
    Scores,
    decode_rows,
    decode_settings,
    encode,
)

_NICENESS = 5
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 1024, 16_384


def main() -> None:
    """Score until the parent goes away."""
    die_with_parent()
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the messages
    first = read_frame(source)
    if first is None:
        return
    settings = decode_settings(first)
    os.nice(_NICENESS)  # the engine comes first
    if settings.threads:
        torch.set_num_threads(settings.threads)
        native.set_threads(settings.threads)
    try:
        classifier, ready = _load(settings)
    except StartupError as error:
        write_frame(sink, encode(Refused(error.what, error.why, error.fix)))
        return
    write_frame(sink, encode(ready))
    while (frame := read_frame(source)) is not None:
        rows = decode_rows(frame)
        write_frame(sink, encode(Scores(classifier.scores(rows.ids, rows.types))))


def _load(settings: ScorerSettings) -> tuple[Classifier, ScorerReady]:
    device = resolve_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels are launched on the current one
    dtype = resolve_dtype(settings.dtype, device)
    classifier = Classifier.load(
        Path(settings.model), dtype, device, settings.max_length, settings.label
    )
    batch_tokens = _CPU_BATCH_TOKENS if device.type == "cpu" else _GPU_BATCH_TOKENS
    ready = ScorerReady(
        max_length=classifier.max_length,
        vocab_size=classifier.vocab_size,
        num_labels=classifier.num_labels,
        is_encoder=classifier.is_encoder,
        batch_tokens=batch_tokens,
    )
    return classifier, ready


if __name__ == "__main__":
    main()
