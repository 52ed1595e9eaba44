import numpy as np
import pytest

from turret_server.loadtest.driver import LoadRun
from turret_server.loadtest.goodput import parse_objective
from turret_server.loadtest.record import Record
from turret_server.loadtest.stats import distribution, jain_index, summarise


def _record(index: int, *, ttft_s: float = 0.1, gap_s: float = 0.01, **changes: object) -> Record:
    record = Record(index=index, model="m", tenant="t", start_s=float(index), sent_s=float(index))
    record.first_s = record.start_s + ttft_s
    record.gaps_s = [gap_s] * 4
    record.end_s = record.first_s + 4 * gap_s
    record.num_output_tokens, record.num_prompt_tokens, record.has_usage = 5, 10, True
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def test_percentiles_are_those_of_numpy() -> None:
    values_s = np.random.default_rng(0).gamma(2.0, 0.01, 997)
    summary = distribution(values_s)
    for percent in (50, 90, 95, 99):
        assert summary[f"p{percent}"] == pytest.approx(
            np.percentile(values_s, percent) * 1e3, abs=1e-3
        )
    assert summary["count"] == 997


def test_a_distribution_of_nothing_has_no_numbers() -> None:
    summary = distribution([])
    assert summary["count"] == 0
    assert summary["p99"] is None


@pytest.mark.parametrize(
    ("shares", "index"),
    [([5, 5, 5, 5], 1.0), ([1, 0, 0, 0], 0.25), ([1, 2, 3], 36 / 42), ([0, 0], None), ([], None)],
)
def test_jain_index(shares: list[float], index: float | None) -> None:
    assert jain_index(shares) == (None if index is None else pytest.approx(index, abs=1e-4))


def test_rates_cover_the_whole_run() -> None:
    summary = summarise(LoadRun(records=[_record(i) for i in range(4)], duration_s=2.0), ())
    assert summary["output_tokens_per_s"] == 4 * 5 / 2.0
    assert summary["total_tokens_per_s"] == 4 * 15 / 2.0
    assert summary["requests_per_s"] == 2.0


def test_a_failed_request_counts_as_an_error_and_nowhere_else() -> None:
    records = [_record(0), _record(1, ttft_s=9.0, error="http_500")]
    summary = summarise(LoadRun(records=records, duration_s=1.0), ())
    assert summary["errors"] == {"http_500": 1}
    assert summary["output_tokens"] == 5
    assert summary["ttft_ms"]["max"] == pytest.approx(100)


def test_time_per_output_token_leaves_out_the_first() -> None:
    summary = summarise(LoadRun(records=[_record(0, gap_s=0.02)], duration_s=1.0), ())
    assert summary["tpot_ms"]["p50"] == pytest.approx(20)


def test_goodput_needs_every_objective_and_no_error() -> None:
    records = [
        _record(0),
        _record(1, ttft_s=0.6),
        _record(2, gap_s=0.08),
        _record(3, error="timeout"),
    ]
    objectives = [parse_objective("ttft:500"), parse_objective("itl:50")]
    goodput = summarise(LoadRun(records=records, duration_s=2.0), objectives)["goodput"]
    assert goodput["good"] == 1
    assert goodput["fraction"] == 0.25
    assert goodput["output_tokens_per_s"] == 2.5


def test_an_objective_on_a_number_that_is_missing_is_not_met() -> None:
    assert not parse_objective("ttft:500").met_by(_record(0, first_s=None))


def test_groups_are_by_model_and_by_tenant() -> None:
    records = [_record(0, model="a"), _record(1, model="b", tenant="u"), _record(2, model="b")]
    summary = summarise(LoadRun(records=records, duration_s=1.0), ())
    assert {k: v["requests"] for k, v in summary["models"].items()} == {"a": 1, "b": 2}
    assert {k: v["requests"] for k, v in summary["tenants"].items()} == {"t": 2, "u": 1}


def test_fairness_by_speed_ignores_that_one_name_is_asked_for_more() -> None:
    records = [_record(0, model="a"), *(_record(i, model="b") for i in range(1, 9))]
    fairness = summarise(LoadRun(records=records, duration_s=1.0), ())["fairness"]["models"]
    assert fairness["speed"] == 1.0
    assert fairness["throughput"] == pytest.approx(45**2 / (2 * (5**2 + 40**2)), abs=1e-4)


def test_timeline_counts_each_event_in_its_second() -> None:
    record = _record(0, ttft_s=0.5, gap_s=0.4)  # events at 0.5, 0.9, 1.3, 1.7, 2.1
    summary = summarise(LoadRun(records=[record], duration_s=3.0), ())
    assert summary["output_tokens_timeline"] == [2, 2, 1]
