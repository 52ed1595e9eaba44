"""When to ask again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from turret_client.errors import TurretError

LONGEST_WAIT_S = 60.0
_FIRST_WAIT_S, _LONGEST_BACKOFF_S = 0.5, 8.0
_JITTER = 0.25


def wait_before_retry(error: TurretError, attempt: int, max_retries: int) -> float | None:
    """Seconds to wait before asking again; None where that is pointless.

    A server that says when to come back is obeyed, unless it asks for more than a minute: that is
    left to the caller, as `error.retry_after_s`. Otherwise the wait doubles from half a second to
    eight. Up to a quarter is added at random, so that refused clients do not return all at once.

    Args:
        error: of the last attempt.
        attempt: its number, from 0.
        max_retries: attempts after the first.
    """
    if attempt >= max_retries or not error.retryable:
        return None
    wait_s = error.retry_after_s
    if wait_s is None:
        wait_s = min(_FIRST_WAIT_S * 2**attempt, _LONGEST_BACKOFF_S)
    elif wait_s > LONGEST_WAIT_S:
        return None
    return wait_s * (1 + _JITTER * random.random())


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `retry-after-ms` or `retry-after` (seconds, or a date) ask for; None without them."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= wait_s < float("inf"):
            return wait_s
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, date.timestamp() - time.time())
