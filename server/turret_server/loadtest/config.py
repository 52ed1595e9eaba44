"""What one load test sends, and how its numbers are judged. Frozen; checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from turret_server.errors import BadRequest
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.popularity import Popularity

if TYPE_CHECKING:
    from pathlib import Path

    from turret_server.loadtest.arrivals import Arrivals
    from turret_server.loadtest.goodput import Objective

Endpoint = Literal["completions", "chat"]

_UNIFORM = Popularity("uniform")
_SIXTY, _SIXTY_FOUR = Lengths("fixed", 60), Lengths("fixed", 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model name to ask for, with JSON fields that only its requests carry."""

    model: str
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A caller: a name for the report and the key it authenticates with (None: no key)."""

    name: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """Everything that determines the requests of a run.

    Attributes:
        url: root of the server, without `/v1`.
        endpoint: "completions" or "chat".
        targets: model names, most popular first.
        popularity: how requests spread over `targets`.
        tenants: callers; each request takes one at random.
        concurrency: workers of a closed loop; None when `arrivals` or the trace drives the run.
        arrivals: arrival process of an open loop.
        trace: JSONL file of requests; alone, it is replayed at its own timestamps.
        num_requests: requests to send.
        duration_s: seconds after which no further request starts; those running are waited for.
        prompt_lengths: in tokens when `tokenizer_json` is given, else in words.
        tokenizer_json: tokenizer that makes prompts exact to the token.
        output_lengths: `max_tokens` of each request.
        stream: read the answer as server-sent events; without it there is no time to first token.
        ignore_eos: ask the server to generate exactly `max_tokens`.
        temperature: sent with every request.
        extra_body: JSON fields that every request carries.
        num_warmup: requests sent before the measurement, over all targets in turn.
        timeout_s: limit of one request, from sending to its last byte.
        objectives: what makes a request good.
        seed: fixes models, tenants, lengths, prompts and arrivals.
    """

    url: str
    endpoint: Endpoint = "completions"
    targets: tuple[Target, ...]
    popularity: Popularity = _UNIFORM
    tenants: tuple[Tenant, ...] = (Tenant(name="default"),)
    concurrency: int | None = None
    arrivals: Arrivals | None = None
    trace: Path | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    prompt_lengths: Lengths = _SIXTY
    tokenizer_json: Path | None = None
    output_lengths: Lengths = _SIXTY_FOUR
    stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    extra_body: dict[str, Any] = field(default_factory=dict)
    num_warmup: int = 0
    timeout_s: float = 600.0
    objectives: tuple[Objective, ...] = ()
    seed: int = 0

    def validate(self) -> None:
        """Refuse combinations that describe no run.

        Raises:
            BadRequest: naming the flag at fault.
        """
        if not self.url.startswith(("http://", "https://")):
            raise BadRequest(
                f"--url {self.url!r} is not an HTTP address", "", "Give http://HOST:PORT"
            )
        for what, names in (
            ("--model", [target.model for target in self.targets]),
            ("--tenant", [tenant.name for tenant in self.tenants]),
        ):
            if not names or len(set(names)) != len(names):
                raise BadRequest(f"{what} {names!r}", "names must be given, each once")
        if self.concurrency is not None and self.arrivals is not None:
            raise BadRequest(
                "--concurrency and --rate are both given",
                "a loop is either closed (N workers) or open (arrivals of their own)",
                "Drop one of them",
            )
        if self.concurrency is None and self.arrivals is None and self.trace is None:
            raise BadRequest(
                "Nothing drives the load", "", "Give --concurrency N, --rate R or --trace FILE"
            )
        if self.num_requests is None and self.duration_s is None and self.trace is None:
            raise BadRequest("The load has no end", "", "Give --num-requests or --duration")
        if self.arrivals is not None:
            self.arrivals.validate()
        for flag, value, smallest in (
            ("--concurrency", self.concurrency, 1),
            ("--num-requests", self.num_requests, 1),
            ("--warmup", self.num_warmup, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < smallest:
                raise BadRequest(f"{flag} {value} is out of range", f"it is at least {smallest}")
        for flag, seconds in (("--duration", self.duration_s), ("--timeout", self.timeout_s)):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise BadRequest(f"{flag} {seconds!r} is out of range", "it must be positive")

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON, without keys of tenants."""
        arrivals = self.arrivals
        return {
            "endpoint": self.endpoint,
            "models": [target.model for target in self.targets],
            "model_bodies": {t.model: t.body for t in self.targets if t.body},
            "popularity": str(self.popularity),
            "tenants": [tenant.name for tenant in self.tenants],
            "concurrency": self.concurrency,
            "rate_per_s": arrivals and arrivals.rate_per_s,
            "burstiness": arrivals and arrivals.burstiness,
            "burst_size": arrivals and arrivals.burst_size,
            "trace": self.trace and str(self.trace),
            "num_requests": self.num_requests,
            "duration_s": self.duration_s,
            "prompt_lengths": str(self.prompt_lengths),
            "prompt_unit": "tokens" if self.tokenizer_json else "words",
            "output_lengths": str(self.output_lengths),
            "stream": self.stream,
            "ignore_eos": self.ignore_eos,
            "temperature": self.temperature,
            "extra_body": self.extra_body,
            "num_warmup": self.num_warmup,
            "timeout_s": self.timeout_s,
            "seed": self.seed,
        }
