"""What a tenant may still do: requests, tokens and pages per minute, and requests at once.

Every quota per minute is a bucket that holds a minute's worth and fills evenly, so a burst is
served and the average holds. Tokens are reserved when a request is admitted, prompt and longest
answer, and what was not used comes back when it ends: many requests at once cannot overshoot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from turret_server.errors import BadRequest, Overloaded
from turret_server.tenancy.principal import Quotas, Tenant

_MINUTE = 60.0
_LONGEST_S = 3600.0  # what a client is told to wait at most


class QuotaExceeded(Overloaded):
    """A quota of the tenant is used up for now."""

    code = "rate_limit_exceeded"

    def __init__(self, what: str, why: str, fix: str, *, retry_after_s: float) -> None:
        super().__init__(what, why, fix)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Bucket:
    """A quota per minute; `left` is what it held at `at`."""

    limit: int
    at: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = float(self.limit)

    def fill(self, now: float) -> None:
        self.left = min(self.limit, self.left + (now - self.at) * self.limit / _MINUTE)
        self.at = now

    def give_back(self, amount: int) -> None:
        self.left = min(self.limit, self.left + amount)

    def wait_s(self, amount: float) -> float:
        """Until it holds so much."""
        missing = amount - self.left
        return 0.0 if missing <= 0 else missing * _MINUTE / self.limit if self.limit else math.inf


class Reservation:
    """What one request holds of its tenant's quotas; a context manager that gives back.

    Attributes:
        used: tokens that it did use; set before the end.
    """

    def __init__(self, meter: Meter, tenant: Tenant) -> None:
        self._meter, self._tenant = meter, tenant
        self._tokens = self.used = 0
        self._bucket: _Bucket | None = None  # that the tokens are from

    def take(self, *, tokens: int = 0, pages: int = 0) -> None:
        """Reserve tokens, as many as the request can use, or count pages that it brings.

        Raises:
            QuotaExceeded: not now; when, it says.
            BadRequest: never: the request alone is more than a minute's worth.
        """
        self._meter.take(self._tenant, {"tokens": tokens, "pages": pages})
        if tokens:
            self._tokens, self._bucket = self._tokens + tokens, self._meter.tokens

    def check(self, *, tokens: int = 0, pages: int = 0) -> None:
        """Raise what `take` would, and take nothing."""
        self._meter.check(self._tenant, {"tokens": tokens, "pages": pages})

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.running -= 1
        if self._bucket is not None:  # another has its place by now where the quota was changed
            self._bucket.give_back(self._tokens - self.used)


class Meter:
    """One tenant's quotas. The event loop alone uses it.

    Args:
        clock: monotonic seconds, so that a changed wall clock frees nobody and blocks nobody.

    Attributes:
        running: requests that hold a reservation.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quotas = Quotas()
        self._buckets: dict[str, _Bucket] = {}
        self.running = 0

    def enter(self, tenant: Tenant) -> Reservation:
        """Let a request in, before any work is done for it.

        Args:
            tenant: whose meter this is, with its quotas of now.

        Raises:
            QuotaExceeded: its requests of this minute, or at once, are used up.
        """
        self._follow(tenant.quotas)
        most = tenant.quotas.concurrent_requests
        if most is not None and self.running >= most:
            raise QuotaExceeded(
                f"{tenant.name!r} has {self.running} requests running",
                f"its quota is {most} at once",
                "Send the next one when one has ended.",
                retry_after_s=1.0,
            )
        self.take(tenant, {"requests": 1})
        self.running += 1
        return Reservation(self, tenant)

    def take(self, tenant: Tenant, amounts: Mapping[str, int]) -> None:
        """Use up some of the buckets, or none; see `Reservation.take`."""
        self.check(tenant, amounts)
        for name, amount in amounts.items():
            if name in self._buckets:
                self._buckets[name].left -= amount

    def check(self, tenant: Tenant, amounts: Mapping[str, int]) -> None:
        """Is so much left? See `Reservation.take`."""
        self._fill()
        named = ((name, self._buckets.get(name), n) for name, n in amounts.items())
        wanted = [(name, bucket, n) for name, bucket, n in named if bucket is not None and n]
        for name, bucket, amount in wanted:
            if amount > bucket.limit and bucket.limit:
                raise BadRequest(
                    f"the request asks for {amount} {name}",
                    f"{tenant.name!r} has {bucket.limit} in a minute",
                    "Ask for less; a quota is raised by an admin.",
                    param="max_tokens" if name == "tokens" else None,
                )
            if (wait_s := bucket.wait_s(amount)) > 0:
                raise QuotaExceeded(
                    f"{tenant.name!r} has used its {name} for now",
                    f"its quota is {bucket.limit} in a minute, {max(0, int(bucket.left))} of them "
                    f"are left, and the request may take {amount}",
                    f"Try again in {math.ceil(min(wait_s, _LONGEST_S))} s.",
                    retry_after_s=min(wait_s, _LONGEST_S),
                )

    @property
    def tokens(self) -> _Bucket | None:
        """The bucket that tokens are from now; None without such a quota."""
        return self._buckets.get("tokens")

    def headers(self) -> dict[str, str]:
        """OpenAI's headers: limit, what remains, and until when it is whole again."""
        now, headers = self._clock(), {}
        for name in ("requests", "tokens"):
            bucket = self._buckets.get(name)
            if bucket is not None:
                bucket.fill(now)
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.left)))
                whole_s = bucket.wait_s(bucket.limit)
                headers[f"x-ratelimit-reset-{name}"] = (
                    f"{whole_s:.3f}s" if math.isfinite(whole_s) else "0s"
                )
        return headers

    def _follow(self, quotas: Quotas) -> None:
        """Take changed quotas, which begin whole.

        Of requests that are let in alone: one from before the change would bring the old ones back.
        """
        if quotas != self._quotas:
            now = self._clock()
            limits = {
                "requests": (quotas.requests_per_minute, self._quotas.requests_per_minute),
                "tokens": (quotas.tokens_per_minute, self._quotas.tokens_per_minute),
                "pages": (quotas.pages_per_minute, self._quotas.pages_per_minute),
            }
            for name, (limit, before) in limits.items():
                if limit is None:
                    self._buckets.pop(name, None)
                elif limit != before:
                    self._buckets[name] = _Bucket(limit, now)
            self._quotas = quotas

    def _fill(self) -> None:
        now = self._clock()
        for bucket in self._buckets.values():
            bucket.fill(now)


class Meters:
    """Every tenant's meter.

    Quotas hold per server: of several replicas each has its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[str, Meter] = {}

    def of(self, tenant: Tenant) -> Meter:
        """The tenant's; made when it first calls."""
        if tenant.name not in self._meters:
            self._meters[tenant.name] = Meter(self._clock)
        return self._meters[tenant.name]

    def running(self) -> dict[str, int]:
        """Requests in flight, by the names of tenants that have any."""
        return {name: meter.running for name, meter in self._meters.items() if meter.running}
