"""What the server and a scorer's process tell each other."""

from __future__ import annotations

import msgspec


class ScorerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told at its start."""

    model: str  # folder
    device: str = "cpu"  # as EngineSettings
    dtype: str = "auto"  # likewise; of decoders
    threads: int = 0  # 0 = all this process may use
    max_length: int = 4096  # tokens of an input; less where the model takes less
    label: str = ""  # whose log-probability is the score; "" for a model of one output


class ScorerReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded."""

    max_length: int
    vocab_size: int
    num_labels: int
    is_encoder: bool
    batch_tokens: int  # of one `Rows` of several inputs, padding included


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served: a StartupError."""

    what: str
    why: str
    fix: str


class Rows(msgspec.Struct, frozen=True, tag=True):
    """Inputs to score: token ids, and token types where an encoder has pairs."""

    ids: list[list[int]]
    types: list[list[int]]


class Scores(msgspec.Struct, frozen=True, tag=True):
    """One score for each input."""

    values: list[float]


encode = msgspec.msgpack.Encoder().encode
decode_settings = msgspec.msgpack.Decoder(ScorerSettings).decode
decode_rows = msgspec.msgpack.Decoder(Rows).decode
decode_reply = msgspec.msgpack.Decoder(ScorerReady | Refused | Scores).decode
