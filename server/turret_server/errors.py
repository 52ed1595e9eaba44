"""The error tree. Every error says what happened, why, and how to fix it.

TurretError
├── BadRequest            400  a field is malformed, out of range or unknown
│   ├── PromptTooLong     400  context_length_exceeded
│   ├── Unprocessable     422  well-formed, but cannot be served exactly as asked
│   └── UnsupportedMedia  415  the body is not declared to be JSON
├── Unauthorized          401
├── Forbidden             403
├── NotFound              404  unknown model or adapter
│   └── RouteNotFound     404
├── MethodNotAllowed      405  the route knows other methods
├── RequestTimeout        408  the request itself does not come
├── Conflict              409
├── PayloadTooLarge       413
├── HeaderTooLarge        431
├── Overloaded            429  too much at once, of this caller or of its kind (Retry-After)
├── FetchFailed           502  a remote source cannot be read
├── EngineUnavailable     503  the engine is starting, restarting or draining (Retry-After)
├── ServerOverloaded      503  more waits than can be answered in time (Retry-After)
├── DeadlineExceeded      504  the request's own deadline passed
└── StartupError          --   a setting, model or device that cannot be served
"""

from __future__ import annotations

from typing import ClassVar


class TurretError(Exception):
    """An error a user can act on.

    Args:
        what: what happened, naming the object with `!r`.
        why: the cause.
        fix: what to do about it.
        param: the request field at fault, as a JSON path such as `messages[0].content`.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retry_after_s: float | None = None

    def __init__(self, what: str, why: str = "", fix: str = "", *, param: str | None = None):
        super().__init__(what, why, fix)
        self.what, self.why, self.fix, self.param = what, why, fix, param

    def __str__(self) -> str:
        head = f"{self.what.rstrip('.')}: {self.why}" if self.why else self.what
        text = head.rstrip(".") + "."
        return f"{text} {self.fix}" if self.fix else text


class BadRequest(TurretError):
    """A field of the request is malformed, out of range or unknown."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class PromptTooLong(BadRequest):
    """Prompt and requested output exceed the context of the model."""

    code = "context_length_exceeded"


class Unprocessable(BadRequest):
    """The request is well formed but cannot be served exactly as asked."""

    status, code = 422, "unprocessable"


class UnsupportedMedia(BadRequest):
    """The body is not declared to be JSON."""

    status, code = 415, "unsupported_media_type"


class Unauthorized(TurretError):
    """No key, or an unknown one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(TurretError):
    """The key does not grant this."""

    status, type, code = 403, "permission_error", "forbidden"


class NotFound(TurretError):
    """Unknown model or adapter."""

    status, type, code = 404, "not_found_error", "model_not_found"


class RouteNotFound(NotFound):
    """No such path."""

    code = "route_not_found"


class MethodNotAllowed(TurretError):
    """The route exists, but not for this method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(TurretError):
    """The client has not sent its request in time."""

    status, type, code = 408, "timeout_error", "request_timeout"


class Conflict(TurretError):
    """The name is taken, or the object is in use."""

    status, type, code = 409, "conflict_error", "conflict"


class PayloadTooLarge(TurretError):
    """The body exceeds the limit."""

    status, type, code = 413, "invalid_request_error", "payload_too_large"


class HeaderTooLarge(TurretError):
    """The header exceeds the limit."""

    status, type, code = 431, "invalid_request_error", "header_too_large"


class Overloaded(TurretError):
    """Too much at once, of this caller or of this kind."""

    status, type, code = 429, "rate_limit_error", "overloaded"
    retry_after_s = 1.0


class FetchFailed(TurretError):
    """The place that something is fetched from does not answer, or not as it should."""

    status, type, code = 502, "bad_gateway_error", "fetch_failed"


class EngineUnavailable(TurretError):
    """The engine is starting, restarting or draining."""

    status, type, code = 503, "service_unavailable", "engine_unavailable"
    retry_after_s = 2.0


class ServerOverloaded(TurretError):
    """More waits than can be answered in time, whoever asks."""

    status, type, code = 503, "service_unavailable", "server_overloaded"
    retry_after_s = 1.0


class DeadlineExceeded(TurretError):
    """The deadline that the request carried has passed."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"


class StartupError(TurretError):
    """A setting, model or device that cannot be served."""

    code = "startup"
