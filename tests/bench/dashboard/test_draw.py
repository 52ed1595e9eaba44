from __future__ import annotations

from pathlib import Path

from bench.dashboard.draw import draw
from bench.dashboard.evaluate import History
from bench.dashboard.panels import read_panels


def test_panels_become_a_picture(tmp_path):
    panels = read_panels(Path("deploy/grafana/turret.json"), rate_interval="10s")
    history = History()
    for at_s in range(0, 30, 5):
        history.put(at_s, "turret_engine_up", 1.0, instance="a")
        history.put(at_s, "turret_http_responses_total", 2.0 * at_s, instance="a", status="200")
    draw(panels[:2], history, (0.0, 25.0), tmp_path / "board.svg")
    text = (tmp_path / "board.svg").read_text()
    assert text.startswith("<?xml")
    assert len(text) > 10_000
