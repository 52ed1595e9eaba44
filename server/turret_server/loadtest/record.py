"""What the client saw of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Record:
    """Times of one request, in seconds on the clock of the run.

    Attributes:
        index: position in the workload.
        model: name it asked for.
        tenant: name of its caller.
        start_s: when it was due (open loop) or sent (closed loop). Latencies count from here, so
            a generator that falls behind shows as latency instead of hiding it.
        sent_s: when it was really sent.
        first_s: arrival of the first text; None when nothing came or the answer was not streamed.
        end_s: arrival of the last byte, or of the error.
        gaps_s: seconds between neighbouring events that carried text; 0 where two arrived in one
            network read.
        num_events: events that carried text.
        num_prompt_tokens: as the server's usage tells it, else 0.
        num_output_tokens: as the server's usage tells it, else `num_events`.
        has_usage: whether the server sent usage.
        error: None, or the kind: "connect", "disconnect", "timeout", "http_STATUS",
            "stream_error", "truncated", "malformed", "empty".
        detail: the first characters of the error's message.
    """

    index: int
    model: str
    tenant: str
    start_s: float
    sent_s: float
    first_s: float | None = None
    end_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_events: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False
    error: str | None = None
    detail: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_s is None else self.first_s - self.start_s

    @property
    def e2e_s(self) -> float:
        """End-to-end time."""
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None below two tokens or unstreamed."""
        if self.first_s is None or self.num_output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.num_output_tokens - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON, times in milliseconds but for `start_s`."""
        ttft_s = self.ttft_s
        return {
            "index": self.index,
            "model": self.model,
            "tenant": self.tenant,
            "start_s": round(self.start_s, 6),
            "ttft_ms": None if ttft_s is None else round(ttft_s * 1e3, 3),
            "e2e_ms": round(self.e2e_s * 1e3, 3),
            "itl_ms": [round(gap * 1e3, 3) for gap in self.gaps_s],
            "prompt_tokens": self.num_prompt_tokens,
            "output_tokens": self.num_output_tokens,
            "error": self.error,
            "detail": self.detail,
        }
