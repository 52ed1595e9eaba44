"""Whose turn a request takes."""

from __future__ import annotations

from fastapi import Request

from turret_server.telemetry.record import RequestRecord

# Set by gateways that know the tenants (gateway-api-inference-extension).
_HEADER = "x-gateway-inference-fairness-id"


def fairness_key(request: Request, record: RequestRecord) -> str:
    """The tenant that called; on an open server, what the gateway before it says.

    With keys the header is not believed: a client could take more turns by inventing ids.
    """
    return record.tenant or request.headers.get(_HEADER, "")[:128]
