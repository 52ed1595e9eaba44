"""Summaries of records: percentiles, throughput, goodput, fairness, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from turret_server.loadtest.driver import LoadRun
from turret_server.loadtest.goodput import Objective
from turret_server.loadtest.record import Record

_PERCENTILES = (50, 90, 95, 99)
METRICS = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")


def summarise(run: LoadRun, objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return every number of a run as JSON.

    Latencies and token counts cover requests that ended without error; a request that failed is
    counted under `errors` only, so failing fast never looks like being fast.
    """
    summary = _group(run.records, run.duration_s, objectives)
    summary["duration_s"] = round(run.duration_s, 3)
    by_model = _grouped(run.records, lambda record: record.model)
    by_tenant = _grouped(run.records, lambda record: record.tenant)
    summary["models"] = {k: _group(v, run.duration_s, objectives) for k, v in by_model.items()}
    summary["tenants"] = {k: _group(v, run.duration_s, objectives) for k, v in by_tenant.items()}
    summary["fairness"] = {
        "models": _fairness(by_model.values()),
        "tenants": _fairness(by_tenant.values()),
    }
    summary["quantiles"] = _quantiles(run.records)
    summary["output_tokens_timeline"] = _timeline(run.records)
    lags_s = [record.sent_s - record.start_s for record in run.records]
    summary["generator"] = {
        "cpu_s": round(run.generator_cpu_s, 3),
        "cpu_share": _ratio(run.generator_cpu_s, run.duration_s),
        "max_send_lag_ms": _ms(max(lags_s, default=0.0)),
        "requests_without_usage": sum(not r.has_usage for r in run.records if r.error is None),
        "warmup_errors": dict(Counter(run.warmup_errors)),
    }
    return summary


def distribution(values_s: Iterable[float]) -> dict[str, float | int | None]:
    """Summarise seconds as milliseconds: count, mean, std, min, p50, p90, p95, p99, max.

    Percentiles interpolate linearly between order statistics, as numpy does by default.
    """
    values = np.fromiter(values_s, dtype=np.float64) * 1e3
    if values.size == 0:
        empty = dict.fromkeys(["mean", "std", "min", *(f"p{p}" for p in _PERCENTILES), "max"])
        return {"count": 0, **empty}
    points = np.percentile(values, _PERCENTILES)
    return {
        "count": int(values.size),
        "mean": _round(values.mean()),
        "std": _round(values.std()),
        "min": _round(values.min()),
        **{f"p{p}": _round(point) for p, point in zip(_PERCENTILES, points, strict=True)},
        "max": _round(values.max()),
    }


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index, (sum x)^2 / (n * sum x^2): 1 is even, 1/n is all for one.

    From "A Quantitative Measure of Fairness and Discrimination" (Jain, Chiu, Hawe, 1984). None
    when there is nothing to share.
    """
    x = np.asarray(shares, dtype=np.float64)
    squares = float((x * x).sum())
    return round(float(x.sum() ** 2 / (x.size * squares)), 4) if squares > 0 else None


def _group(
    records: Sequence[Record], duration_s: float, objectives: Sequence[Objective]
) -> dict[str, Any]:
    good = [record for record in records if record.error is None]
    prompt_tokens = sum(record.num_prompt_tokens for record in good)
    output_tokens = sum(record.num_output_tokens for record in good)
    return {
        "requests": len(records),
        "completed": len(good),
        "errors": dict(Counter(record.error for record in records if record.error)),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": _ratio(len(good), duration_s),
        "output_tokens_per_s": _ratio(output_tokens, duration_s),
        "total_tokens_per_s": _ratio(prompt_tokens + output_tokens, duration_s),
        **{name: distribution(values) for name, values in _latencies_s(good).items()},
        "goodput": _goodput(records, good, duration_s, objectives),
    }


def _latencies_s(good: Sequence[Record]) -> dict[str, list[float]]:
    return {
        "ttft_ms": [r.ttft_s for r in good if r.ttft_s is not None],
        "itl_ms": [gap for r in good for gap in r.gaps_s],
        "tpot_ms": [r.tpot_s for r in good if r.tpot_s is not None],
        "e2e_ms": [r.e2e_s for r in good],
    }


def _goodput(
    records: Sequence[Record],
    completed: Sequence[Record],
    duration_s: float,
    objectives: Sequence[Objective],
) -> dict[str, Any] | None:
    """Count the requests that meet every objective; a failed request meets none."""
    if not objectives:
        return None
    good = [r for r in completed if all(objective.met_by(r) for objective in objectives)]
    return {
        "objectives": [str(objective) for objective in objectives],
        "good": len(good),
        "fraction": _ratio(len(good), len(records)),
        "requests_per_s": _ratio(len(good), duration_s),
        "output_tokens_per_s": _ratio(sum(r.num_output_tokens for r in good), duration_s),
    }


def _fairness(groups: Iterable[Sequence[Record]]) -> dict[str, float | None]:
    """Jain's index over groups, of two shares.

    `throughput` is output tokens: what counts between callers that ask for equally much. `speed`
    is output tokens per second of waiting: it stays 1 when some names are merely asked for more
    often than others, as under Zipf popularity.
    """
    tokens, speeds = [], []
    for records in groups:
        good = [record for record in records if record.error is None]
        tokens.append(float(sum(record.num_output_tokens for record in good)))
        waited_s = sum(record.e2e_s for record in records)
        speeds.append(tokens[-1] / waited_s if waited_s > 0 else 0.0)
    return {"throughput": jain_index(tokens), "speed": jain_index(speeds)}


def _quantiles(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return the 0th to 100th percentile of each latency in ms, for curves without raw data."""
    latencies = _latencies_s([record for record in records if record.error is None])
    points = np.arange(101)
    return {
        name: [_round(v) for v in np.percentile(np.asarray(values) * 1e3, points)] if values else []
        for name, values in latencies.items()
    }


def _timeline(records: Sequence[Record]) -> list[int]:
    """Return output events per second of the run; [ceil(duration)] counts."""
    times_s: list[float] = []
    for record in records:
        if record.first_s is not None:
            times_s.append(record.first_s)
            times_s.extend((record.first_s + np.cumsum(record.gaps_s)).tolist())
    if not times_s:
        return []
    return np.bincount(np.asarray(times_s).astype(np.int64)).tolist()


def _grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return dict(sorted(groups.items()))


def _ratio(value: float, over: float) -> float:
    return round(value / over, 4) if over > 0 else 0.0


def _ms(seconds: float) -> float:
    return _round(seconds * 1e3)


def _round(value: float) -> float:
    return round(float(value), 3)
