"""Whether there are to be traces; OpenTelemetry is imported only then."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from turret_server.errors import StartupError

if TYPE_CHECKING:
    from turret_server.telemetry.tracing import Tracing

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def make_tracing(endpoint: str) -> Tracing | None:
    """What makes spans of requests; None where nobody asks for them.

    Args:
        endpoint: of the collector; "" for what OpenTelemetry's variables say.

    Raises:
        StartupError: the endpoint is no URL, or OpenTelemetry is not installed.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not endpoint:
        is_off = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
        if is_off or not any(os.environ.get(name) for name in _VARIABLES):
            return None
    elif not endpoint.startswith(("http://", "https://")):
        raise StartupError(
            f"--otlp-endpoint {endpoint!r} is no URL",
            "it begins with neither http:// nor https://",
            "Write http://127.0.0.1:4318.",
        )
    try:
        from turret_server.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise StartupError(
            "traces cannot be sent",
            f"{error.name} is not installed",
            "Run pip install 'turret[otel]', or leave --otlp-endpoint and OTEL_* out.",
        ) from error
    return Tracing.to_collector(endpoint)
