"""Structured logs: one JSON object per line, one line per request, never a word of a prompt."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from turret_server.telemetry.record import RequestRecord

logger = logging.getLogger("turret")

# Probes and scrapers would drown everything else.
PROBES = frozenset({"/health", "/ping", "/ready", "/metrics", "/version"})
# JSON lets them stand as they are; terminals and many readers of lines do not.
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}

# A key that somebody wrote into a path, where its beginning belongs.
_KEY = re.compile(r"(tk-[\w-]{8})[\w-]{20,}")


class JsonFormatter(logging.Formatter):
    """Renders a record, and the fields given as `extra={"fields": {...}}`, as JSON.

    Every line break is escaped, those of Unicode too, so no header or name can forge a line.
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
        return msgspec.json.encode(line).decode().translate(_ESCAPED)


def configure_logging(level: str = "info") -> None:
    """Send the logs of Turret and of its HTTP server to stderr, in place of what was configured.

    Other libraries keep their silence: what they would say at "debug" may quote a request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("turret", "turret_server", "turret_adapters", "uvicorn"):
        ours = logging.getLogger(name)
        ours.handlers[:] = [handler]
        ours.propagate = False
        # The HTTP server's own lines below a warning repeat ours.
        ours.setLevel(logging.WARNING if name == "uvicorn" else level.upper())


def log_request(record: RequestRecord, method: str, path: str, status: int) -> None:
    """One line for a request that has ended."""
    quiet = path in PROBES and status < 500
    level = logging.DEBUG if quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "request_id": record.id,
        "method": method,
        "path": _KEY.sub(r"\1…", path)[:256],
        "status": status,
        "duration_ms": _ms(time.perf_counter() - record.started),
    }
    if record.principal is not None:
        fields["tenant"], fields["key"] = record.tenant, record.principal.key
    if record.model:
        fields |= {
            "model": record.model[:256],
            "adapter": record.label if record.adapters else None,
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
        # Message and field may quote the request; class and code do not.
        fields |= {"error": type(record.error).__name__, "code": record.error.code}
    logger.log(level, "request", extra={"fields": fields})


def log_unexpected(record: RequestRecord, error: Exception) -> None:
    """An exception that nothing handled: where it came from, without its words.

    They may quote the request: what a library could not parse, it likes to show.
    """
    fields = {
        "request_id": record.id,
        "error": type(error).__name__,
        "traceback": _places(error),
    }
    logger.error("unhandled_exception", extra={"fields": fields})


def _places(error: BaseException | None) -> list[str]:
    """Classes of an exception and of its causes, each with the lines of code it passed."""
    found, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found.append(type(error).__name__)
        found += [
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        error = error.__cause__ or error.__context__
    return found


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
