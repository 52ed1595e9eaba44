"""Read a trace: one JSON object a line, each a request that somebody once sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turret_server.errors import BadRequest

if TYPE_CHECKING:
    from pathlib import Path


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a trace; fields it does not know are ignored.

    Attributes:
        prompt: the text itself, or
        prompt_length: its length, in the unit of the run (words, or tokens with a tokenizer).
        output_tokens: tokens to generate; None takes the run's distribution.
        model: name to ask for; None takes the run's popularity.
        tenant: name of a configured tenant; None picks one at random.
        timestamp_s: arrival, in seconds from any origin.
    """

    prompt: str | None = None
    prompt_length: int | None = None
    output_tokens: int | None = None
    model: str | None = None
    tenant: str | None = None
    timestamp_s: float | None = None


def read_trace(path: Path) -> list[TraceRow]:
    """Read and check every line of a JSONL trace.

    Raises:
        BadRequest: the file is missing or empty, a line is malformed, or only some lines carry a
            timestamp, or timestamps run backwards.
    """
    rows: list[TraceRow] = []
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"Trace {str(path)!r} not read", str(error)) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=TraceRow)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"Trace {str(path)!r}, line {number}, not read", str(error)) from error
        for name in ("prompt_length", "output_tokens"):
            value = getattr(row, name)
            if value is not None and value < 1:
                raise BadRequest(
                    f"Trace {str(path)!r}, line {number}: {name} is {value}", "it starts at 1"
                )
        rows.append(row)
    if not rows:
        raise BadRequest(f"Trace {str(path)!r} has no rows", "every line is blank")
    stamps = [row.timestamp_s for row in rows if row.timestamp_s is not None]
    if stamps and (len(stamps) != len(rows) or stamps != sorted(stamps)):
        raise BadRequest(
            f"Trace {str(path)!r} cannot be replayed",
            "timestamp_s must be on every line and never decrease, or be on none",
            "Sort the file, or give --concurrency or --rate and drop the timestamps",
        )
    return rows
