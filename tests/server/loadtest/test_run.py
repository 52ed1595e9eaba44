"""Whole runs against the mock server of conftest.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from turret_server.loadtest.arrivals import Arrivals
from turret_server.loadtest.config import LoadConfig, Tenant
from turret_server.loadtest.driver import run_load
from turret_server.loadtest.environment import served_models
from turret_server.loadtest.lengths import parse_lengths
from turret_server.loadtest.popularity import parse_popularity
from turret_server.loadtest.record import Record

from .conftest import MockServer

MakeConfig = Callable[..., LoadConfig]
FOUR = parse_lengths("4")


async def _one(make_config: MakeConfig, server: MockServer, model: str, **changes) -> Record:
    settings = {"url": server.url, "output_lengths": FOUR, "num_requests": 1} | changes
    run = await run_load(make_config(model, **settings))
    assert len(run.records) == 1
    return run.records[0]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_a_streamed_answer_is_timed_token_by_token(
    mock_server: MockServer, make_config: MakeConfig, endpoint: str
) -> None:
    record = await _one(make_config, mock_server, "base", endpoint=endpoint)
    assert record.error is None
    assert (record.num_prompt_tokens, record.num_output_tokens) == (7, 4)
    assert len(record.gaps_s) == 3  # the role chunk of a chat is no token
    assert record.first_s is not None
    assert record.start_s <= record.sent_s < record.first_s < record.end_s


async def test_without_usage_tokens_are_counted_from_events(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    record = await _one(make_config, mock_server, "no-usage")
    assert not record.has_usage
    assert record.num_output_tokens == 4


async def test_an_answer_that_is_not_streamed_has_no_first_token(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    record = await _one(make_config, mock_server, "base", stream=False)
    assert record.error is None
    assert record.ttft_s is None
    assert record.num_output_tokens == 4


@pytest.mark.parametrize(
    ("model", "kind", "detail"),
    [
        ("overloaded", "http_429", "queue full"),
        ("disconnect", "disconnect", ""),
        ("stream-error", "stream_error", "engine died"),
        ("malformed", "malformed", ""),
        ("truncated", "truncated", ""),
    ],
)
async def test_errors_are_told_apart(
    mock_server: MockServer, make_config: MakeConfig, model: str, kind: str, detail: str
) -> None:
    record = await _one(make_config, mock_server, model)
    assert record.error == kind
    assert detail in record.detail


async def test_an_answer_without_output_is_an_error(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    record = await _one(make_config, mock_server, "empty", stream=False)
    assert record.error == "empty"


async def test_a_hang_ends_at_the_time_limit(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    record = await _one(make_config, mock_server, "hang", timeout_s=0.3)
    assert record.error == "timeout"
    assert record.ttft_s is not None
    assert 0.3 <= record.e2e_s < 5


async def test_a_server_that_is_not_there_is_an_error_of_connecting(
    make_config: MakeConfig, unused_tcp_port: int
) -> None:
    run = await run_load(make_config(url=f"http://127.0.0.1:{unused_tcp_port}", num_requests=1))
    assert [record.error for record in run.records] == ["connect"]


async def test_a_closed_loop_keeps_its_workers_busy_and_no_more(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    config = make_config(url=mock_server.url, concurrency=3, num_requests=12, output_lengths=FOUR)
    run = await run_load(config)
    assert sorted(record.index for record in run.records) == list(range(12))
    assert mock_server.peak_running == 3


async def test_an_open_loop_does_not_wait_for_answers(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    config = make_config(
        url=mock_server.url,
        arrivals=Arrivals(rate_per_s=1000.0, burst_size=8),
        num_requests=8,
        output_lengths=FOUR,
    )
    run = await run_load(config)
    assert len(run.records) == 8
    assert mock_server.peak_running == 8


async def test_no_request_starts_after_the_duration(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    config = make_config(
        url=mock_server.url, num_requests=None, duration_s=0.2, output_lengths=FOUR
    )
    run = await run_load(config)
    assert run.records
    assert max(record.sent_s for record in run.records) < 0.2 + 0.1


async def test_warmup_is_sent_but_not_counted(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    config = make_config(
        "base", "overloaded", url=mock_server.url, num_warmup=4, num_requests=1, output_lengths=FOUR
    )
    run = await run_load(config)
    assert len(run.records) == 1
    assert len(mock_server.bodies) == 5
    assert run.warmup_errors == ["http_429", "http_429"]


async def test_every_tenant_sends_its_own_key(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    tenants = (Tenant(name="x", api_key="one"), Tenant(name="y", api_key="two"))
    await run_load(
        make_config(url=mock_server.url, tenants=tenants, num_requests=20, output_lengths=FOUR)
    )
    assert set(mock_server.authorizations) == {"Bearer one", "Bearer two"}


async def test_one_bad_model_leaves_the_others_alone(
    mock_server: MockServer, make_config: MakeConfig
) -> None:
    config = make_config(
        "base",
        "disconnect",
        url=mock_server.url,
        popularity=parse_popularity("round-robin"),
        num_requests=10,
        output_lengths=FOUR,
    )
    run = await run_load(config)
    assert {(record.model, record.error) for record in run.records} == {
        ("base", None),
        ("disconnect", "disconnect"),
    }


async def test_the_models_a_server_lists_are_found(mock_server: MockServer) -> None:
    assert await served_models(mock_server.url, None) == ["base", "a0"]
    assert await served_models("http://127.0.0.1:1", None) == []
