"""Structured logs: one JSON object per line, one line per request, never a word of a prompt."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from turret_server.telemetry.record import RequestRecord

logger = logging.getLogger("turret")

# Probes and scrapers would drown everything else.
PROBES = frozenset({"/health", "/ping", "/ready", "/metrics", "/version"})


class JsonFormatter(logging.Formatter):
    """Renders a record, and the fields given as `extra={"fields": {...}}`, as JSON.

    JSON escapes line breaks, so no header or name can forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure_logging(level: str = "info") -> None:
    """Send the logs of Turret to stderr, in place of whatever was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def log_request(record: RequestRecord, method: str, path: str, status: int) -> None:
    """One line for a request that has ended."""
    quiet = path in PROBES and status < 500
    level = logging.DEBUG if quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "request_id": record.id,
        "method": method,
        "path": path[:256],
        "status": status,
        "duration_ms": _ms(time.perf_counter() - record.started),
    }
    if record.principal is not None:
        fields["tenant"], fields["key"] = record.tenant, record.principal.key
    if record.model:
        fields |= {
            "model": record.model[:256],
            "adapters": record.adapters,
            "stream": record.stream,
            "choices": record.choices,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "finish_reasons": sorted(set(record.finish_reasons)),
            "queued_ms": _ms(record.queued_s),
            "first_token_ms": None if record.first_token_s is None else _ms(record.first_token_s),
        }
    if record.member_tokens:
        fields["member_tokens"] = record.member_tokens
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    if record.pages:
        fields["pages"] = record.pages
    if record.disconnected:
        fields["disconnected"] = True
    if record.error is not None:
        # The message may quote the request; class, code and field do not.
        fields |= {
            "error": type(record.error).__name__,
            "code": record.error.code,
            "param": record.error.param,
        }
    logger.log(level, "request", extra={"fields": fields})


def log_unexpected(record: RequestRecord, error: Exception) -> None:
    """An exception that nothing handled, with its traceback."""
    logger.error("unhandled_exception", exc_info=error, extra={"fields": {"request_id": record.id}})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
