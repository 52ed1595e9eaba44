"""The error tree: the server's own (its OpenAI error body with what, why and fix), and two more.

TurretError
├── ConnectionFailed      no answer, or not all of it: refused, timed out, broken
├── InvalidAnswer         what answered is not Turret
├── BadRequest            400  a field is malformed, out of range or unknown
│   ├── PromptTooLong     400  prompt and answer exceed the context
│   ├── Unprocessable     422  well formed, but cannot be served exactly as asked
│   └── UnsupportedMedia  415
├── Unauthorized          401
├── Forbidden             403
├── NotFound              404  unknown model or adapter
│   └── RouteNotFound     404  the server is older than this client, or is not Turret
├── MethodNotAllowed      405
├── RequestTimeout        408  the request did not reach the server in time
├── Conflict              409
├── PayloadTooLarge       413
├── HeaderTooLarge        431
├── Overloaded            429  retried
│   ├── QuotaExceeded     429  a quota of the tenant; retried if it frees within a minute
│   └── QueueFull         429  the tenant's part of the queue is full; retried
├── FetchFailed           502  an adapter's remote source cannot be read
├── EngineUnavailable     503  retried
│   └── UsageNotRecorded  503  the server's disk is full
├── ServerOverloaded      503  retried
├── DeadlineExceeded      504  the request's own timeout_s passed
└── ServerError           5xx  anything else that the server could not do
"""

from __future__ import annotations

from typing import Any


class TurretError(Exception):
    """An error a user can act on.

    Attributes:
        what: what happened.
        why: the cause; may be empty.
        fix: what to do about it; may be empty.
        param: the request field at fault, as a JSON path such as `messages[0].content`.
        status: the HTTP status; None where there was no answer.
        type: OpenAI's error type.
        code: OpenAI's error code.
        retry_after_s: how long the server asks to wait.
        request_id: names the request in the server's log.
        retryable: the same request may succeed later.
    """

    status: int | None = None
    type: str | None = None
    code: str | int | None = None
    retryable: bool = False

    def __init__(
        self,
        what: str,
        why: str = "",
        fix: str = "",
        *,
        message: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix, self.param = what, why, fix, param
        self.retry_after_s, self.request_id = retry_after_s, request_id
        self._message = message

    def __str__(self) -> str:
        if self._message:
            return self._message
        head = f"{self.what.rstrip('.')}: {self.why}" if self.why else self.what
        text = head.rstrip(".") + "."
        return f"{text} {self.fix}" if self.fix else text


class ConnectionFailed(TurretError):
    """No answer came, or it broke off. Retried only where nothing was sent."""


class InvalidAnswer(TurretError):
    """The answer is not one of Turret's; a proxy or another program may have sent it."""


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
    """The key does not grant this, or the path lies outside the adapter roots."""

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
    """The request did not reach the server in time."""

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
    retryable = True


class QuotaExceeded(Overloaded):
    """A quota of the tenant is used up for now."""

    code = "rate_limit_exceeded"


class QueueFull(Overloaded):
    """The caller's part of the queue is full."""

    code = "queue_full"


class FetchFailed(TurretError):
    """The place that an adapter is fetched from does not answer, or not as it should."""

    status, type, code = 502, "bad_gateway_error", "fetch_failed"


class EngineUnavailable(TurretError):
    """The engine is starting, restarting or draining."""

    status, type, code = 503, "service_unavailable", "engine_unavailable"
    retryable = True


class UsageNotRecorded(EngineUnavailable):
    """The disk takes no more: what could not be accounted for is not served."""

    code = "usage_not_recorded"


class ServerOverloaded(TurretError):
    """More waits than can be answered in time, whoever asks."""

    status, type, code = 503, "service_unavailable", "server_overloaded"
    retryable = True


class DeadlineExceeded(TurretError):
    """The deadline that the request carried has passed."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"


class ServerError(TurretError):
    """The server failed."""

    status, type = 500, "server_error"


_CLASSES: tuple[type[TurretError], ...] = (
    BadRequest,
    PromptTooLong,
    Unprocessable,
    UnsupportedMedia,
    Unauthorized,
    Forbidden,
    NotFound,
    RouteNotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    PayloadTooLarge,
    HeaderTooLarge,
    Overloaded,
    QuotaExceeded,
    QueueFull,
    FetchFailed,
    EngineUnavailable,
    UsageNotRecorded,
    ServerOverloaded,
    DeadlineExceeded,
)
_BY_CODE = {cls.code: cls for cls in _CLASSES}
# The general one of each status; a 502 without a code is a proxy's.
_BY_STATUS = {cls.status: cls for cls in reversed(_CLASSES) if cls is not FetchFailed}


def error_from_body(
    body: Any,
    status: int | None = None,
    *,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> TurretError | None:
    """The error that a body holds; None where it holds none.

    Args:
        body: decoded JSON, of a response or of an event in a stream.
        status: of the response; events have none of their own.
        retry_after_s: as its headers tell.
        request_id: as its headers tell.
    """
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict):
        return None
    code = detail.get("code")
    message = str(detail.get("message") or "")
    cls = _BY_CODE.get(code) if isinstance(code, str) else None
    error = (cls or class_of_status(status or 500))(
        str(detail.get("what") or message or f"the server answered {status}"),
        str(detail.get("why") or ""),
        str(detail.get("fix") or ""),
        message=message or None,
        param=detail.get("param"),
        retry_after_s=retry_after_s,
        request_id=request_id,
    )
    error.status = status or error.status
    error.type = detail.get("type") or error.type
    error.code = code if code is not None else error.code
    return error


def class_of_status(status: int) -> type[TurretError]:
    """The class of a failed response that says no more than its status."""
    return _BY_STATUS.get(status) or (ServerError if status >= 500 else BadRequest)
