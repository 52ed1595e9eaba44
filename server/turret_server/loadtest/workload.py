"""Turn a configuration into the requests of a run: same seed, same requests, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from turret_server.errors import BadRequest
from turret_server.loadtest.popularity import Popularity
from turret_server.loadtest.prompts import PromptSource, TokenPrompts, WordPrompts
from turret_server.loadtest.trace import TraceRow, read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turret_server.loadtest.config import LoadConfig, Target, Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """One request, ready to send.

    Attributes:
        index: position in the workload, from 0.
        model: name it asks for.
        tenant: its caller.
        body: JSON, encoded.
        due_s: when to send it, in seconds from the start; None in a closed loop.
    """

    index: int
    model: str
    tenant: Tenant
    body: bytes
    due_s: float | None = None


class Workload:
    """The requests of one run.

    Each ingredient draws from a generator of its own, so that adding a model or changing the
    rate leaves the prompts as they were: runs that differ in one setting stay comparable.

    Raises:
        BadRequest: the trace or the tokenizer is unusable, or they do not fit the configuration.
    """

    def __init__(self, config: LoadConfig):
        self._config = config
        self._prompts: PromptSource = (
            TokenPrompts(config.tokenizer_json) if config.tokenizer_json else WordPrompts()
        )
        self._targets = {target.model: target for target in config.targets}
        self._tenants = {tenant.name: tenant for tenant in config.tenants}
        self._rows = read_trace(config.trace) if config.trace else None
        if self._rows is not None:
            self._check_trace(self._rows)

    def warmup(self) -> list[RequestSpec]:
        """Return the requests to send before the measurement, over all models in turn."""
        config = self._config
        streams = _Streams(config, salt=1, popularity=Popularity("round-robin"))
        return [self._spec(i, TraceRow(), None, streams) for i in range(config.num_warmup)]

    def requests(self) -> Iterator[RequestSpec]:
        """Yield the measured requests in order, at most `num_requests` of them."""
        config = self._config
        streams = _Streams(config, salt=0, popularity=config.popularity)
        rows: Iterator[TraceRow] = iter(self._rows) if self._rows else repeat(TraceRow())
        for index, row in enumerate(islice(rows, config.num_requests)):
            yield self._spec(index, row, self._due_s(row, streams), streams)

    def _due_s(self, row: TraceRow, streams: _Streams) -> float | None:
        if streams.arrivals is not None:
            return next(streams.arrivals)
        if self._config.concurrency is not None or self._rows is None:
            return None
        first_s = self._rows[0].timestamp_s
        assert row.timestamp_s is not None
        assert first_s is not None
        return row.timestamp_s - first_s

    def _spec(
        self, index: int, row: TraceRow, due_s: float | None, streams: _Streams
    ) -> RequestSpec:
        config = self._config
        # Draw even what the row overrides: a row's own fields must not shift those after it.
        target = config.targets[next(streams.models)]
        tenant = config.tenants[int(streams.tenants.integers(len(config.tenants)))]
        prompt_length = row.prompt_length or config.prompt_lengths.sample(streams.prompt_lengths)
        output_tokens = config.output_lengths.sample(streams.output_lengths)
        if row.model is not None:
            target = self._targets[row.model]
        if row.tenant is not None:
            tenant = self._tenants[row.tenant]
        prompt = row.prompt or self._prompts.make(prompt_length, streams.prompts)
        body = self._body(target, prompt, row.output_tokens or output_tokens)
        return RequestSpec(
            index=index,
            model=target.model,
            tenant=tenant,
            body=msgspec.json.encode(body),
            due_s=due_s,
        )

    def _body(self, target: Target, prompt: str, max_tokens: int) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {"model": target.model}
        if config.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        body["max_tokens"] = max_tokens
        body["temperature"] = config.temperature
        if config.ignore_eos:
            body["ignore_eos"] = True
        if config.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body | config.extra_body | target.body

    def _check_trace(self, rows: list[TraceRow]) -> None:
        config = self._config
        if config.concurrency is None and config.arrivals is None and rows[0].timestamp_s is None:
            raise BadRequest(
                f"Trace {str(config.trace)!r} cannot be replayed",
                "its lines carry no timestamp_s",
                "Add --concurrency N or --rate R",
            )
        for name, known, flag in (
            ("model", self._targets, "--model"),
            ("tenant", self._tenants, "--tenant"),
        ):
            used = {getattr(row, name) for row in rows} - {None}
            if unknown := sorted(used - set(known)):
                raise BadRequest(
                    f"Trace {str(config.trace)!r} names the {name} {unknown[0]!r}",
                    f"the run knows {sorted(known)!r}",
                    f"Add it with {flag}",
                )


class _Streams:
    """One random stream for each ingredient, all from the seed of the run."""

    def __init__(self, config: LoadConfig, *, salt: int, popularity: Popularity):
        def stream(ingredient: int) -> np.random.Generator:
            return np.random.default_rng([config.seed, salt, ingredient])

        self.models = popularity.choices(len(config.targets), stream(0))
        self.tenants = stream(1)
        self.prompt_lengths = stream(2)
        self.output_lengths = stream(3)
        self.prompts = stream(4)
        self.arrivals = config.arrivals.times(stream(5)) if config.arrivals else None
