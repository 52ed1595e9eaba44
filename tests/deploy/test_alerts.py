"""Every alert: its names exist, a healthy server is silent, and what it is for sets it off."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from bench.dashboard.evaluate import History, evaluate
from bench.dashboard.promql import parse
from tests.deploy.test_dashboard import check_names

RULES = yaml.safe_load(Path("deploy/prometheus/alerts.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}

EVERY_S, END_S = 15, 1800
FIRST, GAP = "turret_time_to_first_token_seconds", "turret_inter_token_latency_seconds"

# name and labels -> value at a time; counters grow.
HEALTHY = {
    ("turret_engine_up",): lambda s: 1,
    ("turret_engine_restarts_total",): lambda s: 0,
    ("turret_http_responses_total", ("status", "200")): lambda s: 10 * s,
    ("turret_http_responses_total", ("status", "429")): lambda s: 0.5 * s,
    ("turret_http_responses_total", ("status", "500")): lambda s: 0.1 * s,
    (f"{FIRST}_bucket", ("le", "0.25")): lambda s: 9.9 * s,
    (f"{FIRST}_bucket", ("le", "10.0")): lambda s: 10 * s,
    (f"{FIRST}_bucket", ("le", "+Inf")): lambda s: 10 * s,
    (f"{GAP}_bucket", ("le", "0.05")): lambda s: 99 * s,
    (f"{GAP}_bucket", ("le", "1.0")): lambda s: 100 * s,
    (f"{GAP}_bucket", ("le", "+Inf")): lambda s: 100 * s,
    ("turret_num_requests_waiting",): lambda s: 3 if s % 60 else 0,
    ("turret_kv_cache_usage_perc",): lambda s: 0.97,  # much of it cached prefixes
    ("turret_num_preemptions_total",): lambda s: 4,
    ("turret_adapter_loads_total", ("outcome", "failed")): lambda s: 2,
    ("turret_adapter_loads_total", ("outcome", "refused")): lambda s: s,
    ("turret_ledger_journal_errors_total",): lambda s: 1,
    ("turret_ledger_database_errors_total",): lambda s: 1,
    ("turret_database_up",): lambda s: 1,
    ("turret_state_disk_free_bytes",): lambda s: 50,
    ("turret_state_disk_bytes",): lambda s: 100,
}
SICK = {
    "TurretEngineDown": {("turret_engine_up",): lambda s: 0},
    "TurretEngineRestarts": {("turret_engine_restarts_total",): lambda s: s // 900},
    "TurretErrors": {("turret_http_responses_total", ("status", "503")): lambda s: s},
    "TurretSheds": {("turret_http_responses_total", ("status", "429")): lambda s: 5 * s},
    "TurretFirstTokenSlow": {(f"{FIRST}_bucket", ("le", "0.25")): lambda s: s},
    "TurretTokensSlow": {(f"{GAP}_bucket", ("le", "0.05")): lambda s: 9 * s},
    "TurretQueueStands": {("turret_num_requests_waiting",): lambda s: 1},
    "TurretKVCacheFull": {("turret_num_preemptions_total",): lambda s: s},
    "TurretAdapterLoadsFail": {
        ("turret_adapter_loads_total", ("outcome", "failed")): lambda s: s // 300
    },
    "TurretUsageNotRecorded": {("turret_ledger_journal_errors_total",): lambda s: s // 60},
    "TurretUsageWaits": {("turret_ledger_database_errors_total",): lambda s: s // 60},
    "TurretDatabaseDown": {("turret_database_up",): lambda s: 0},
    "TurretDiskFilling": {("turret_state_disk_free_bytes",): lambda s: 9},
}


def history_of(figures):
    history = History()
    for at_s in range(0, END_S + 1, EVERY_S):
        for (name, *labels), figure in figures.items():
            history.put(at_s, name, figure(at_s), instance="turret-0", **dict(labels))
    return history


def firing(history):
    return {name for name, rule in ALERTS.items() if evaluate(parse(rule["expr"]), history, END_S)}


async def test_every_name_and_label_exists(live):
    for rule in ALERTS.values():
        check_names(parse(rule["expr"]), live)


def test_a_healthy_server_is_silent():
    assert firing(history_of(HEALTHY)) == set()


def test_a_server_that_is_gone_is_missed():
    assert firing(History()) == {"TurretAbsent"}


@pytest.mark.parametrize("name", SICK)
def test_what_an_alert_is_for_sets_it_off_and_no_other(name):
    assert firing(history_of(HEALTHY | SICK[name])) == {name}


def test_every_alert_is_tried_and_says_what_to_do():
    assert ALERTS.keys() == SICK.keys() | {"TurretAbsent"}
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}
