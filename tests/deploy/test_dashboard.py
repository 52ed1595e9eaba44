"""Every expression of the dashboard, on the page of a live app."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench.dashboard.evaluate import evaluate
from bench.dashboard.panels import read_panels
from bench.dashboard.promql import groupings, parse, selectors
from tests.deploy.conftest import SCRAPED_AT

DASHBOARD = Path("deploy/grafana/turret.json")
PANELS = read_panels(DASHBOARD)


def check_names(tree, live):
    for selector in selectors(tree):
        known = live.labels.get(selector.metric)
        assert known is not None, f"no metric is called {selector.metric}"
        for label, _, _ in selector.matchers:
            assert label in known, f"{selector.metric} has no label {label}"
    for by, of in groupings(tree):
        for selector in selectors(of):
            assert set(by) <= live.labels[selector.metric], f"{selector.metric} has not all of {by}"


async def test_every_name_and_label_exists_and_every_panel_shows_something(live):
    assert len(PANELS) > 25
    for panel in PANELS:
        for target in panel.targets:
            tree = parse(target.expr)
            check_names(tree, live)
            shown = evaluate(tree, live.history, SCRAPED_AT[-1])
            assert shown, f"{panel.title}: {target.expr} shows nothing"
            for labels in shown:
                named = set(re.findall(r"{{(\w+)}}", target.legend))
                assert named <= dict(labels).keys(), f"{panel.title}: legend {target.legend}"


async def test_a_metric_or_label_that_does_not_exist_is_found_out(live):
    for text in ("turret_nothing", 'turret_engine_up{no="x"}', "sum by (no) (turret_engine_up)"):
        with pytest.raises(AssertionError):
            check_names(parse(text), live)


def test_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                assert x < 24
                taken.add((x, y))


def test_panels_have_ids_and_datasource_of_their_own():
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"].strip("${}") in variables
