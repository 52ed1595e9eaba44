"""A scorer's process without a model: a row's score is its length. Slow, so that others wait."""

from __future__ import annotations

import os
import time

from turret_server.pipeline.frames import read_frame, write_frame
from turret_server.scorer.messages import ScorerReady, Scores, decode_rows, encode

SECONDS = 0.02  # for each batch


def main() -> None:
    source, sink = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    assert read_frame(source) is not None
    ready = ScorerReady(
        max_length=64, vocab_size=400, num_labels=1, is_encoder=True, batch_tokens=120
    )
    write_frame(sink, encode(ready))
    while (frame := read_frame(source)) is not None:
        time.sleep(SECONDS)
        write_frame(sink, encode(Scores([float(len(ids)) for ids in decode_rows(frame).ids])))


if __name__ == "__main__":
    main()
