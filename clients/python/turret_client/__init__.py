"""A torch-free client for Turret, the inference-time adaptation server."""

from turret_client.answers import Adapter, Answer, Choice, Model, Tokens, ToolCall, Usage
from turret_client.async_client import AsyncClient
from turret_client.client import Client
from turret_client.errors import (
    BadRequest,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    EngineUnavailable,
    Forbidden,
    InvalidAnswer,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PromptTooLong,
    RouteNotFound,
    ServerError,
    TurretError,
    Unauthorized,
    Unprocessable,
    UnsupportedMedia,
)
from turret_client.events import Event, Finished, TextDelta, ToolCallDelta, UsageReport
from turret_client.streams import AsyncStream, Stream

__all__ = [
    "Adapter",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "BadRequest",
    "Choice",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "EngineUnavailable",
    "Event",
    "Finished",
    "Forbidden",
    "InvalidAnswer",
    "MethodNotAllowed",
    "Model",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "PromptTooLong",
    "RouteNotFound",
    "ServerError",
    "Stream",
    "TextDelta",
    "Tokens",
    "ToolCall",
    "ToolCallDelta",
    "TurretError",
    "Unauthorized",
    "Unprocessable",
    "UnsupportedMedia",
    "Usage",
    "UsageReport",
]
