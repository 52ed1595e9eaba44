"""Results on disk, tables, plots and the HTML report."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from turret_server.errors import BadRequest, StartupError
from turret_server.loadtest.config import LoadConfig, Tenant
from turret_server.loadtest.driver import LoadRun, run_load
from turret_server.loadtest.html import render_html
from turret_server.loadtest.plots import draw, save_plots
from turret_server.loadtest.result import Result, build_result, read_result, write_result
from turret_server.loadtest.table import comparison_rows, differences, result_tables

from .conftest import MockServer

MakeConfig = Callable[..., LoadConfig]


@pytest.fixture
async def results(mock_server: MockServer, make_config: MakeConfig) -> list[Result]:
    """Two results of one load, one with an error and a label that could break a page."""
    found = []
    for label, models in (("first", ("a", "b")), ("<b>$x$ [red]", ("a", "truncated"))):
        config = make_config(
            *models, url=mock_server.url, tenants=(Tenant(name="x", api_key="hidden"),), seed=1
        )
        found.append(build_result(config, await run_load(config), label=label, save_requests=True))
    return found


def test_a_result_survives_the_disk_and_tells_no_key(results: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_result(results[0], path)
    assert read_result(path) == json.loads(json.dumps(results[0]))
    assert "hidden" not in path.read_text()
    assert [entry["index"] for entry in results[0]["requests"]] == list(range(6))
    assert {"cpu", "cores", "memory_gb"} <= set(results[0]["machine"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 99}'])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BadRequest, match=re.escape(str(path))):
        read_result(path)


def test_a_ratio_is_against_the_first(results: list[Result]) -> None:
    header, rows = comparison_rows(results)
    assert {len(row) for row in rows} == {len(header)}
    column = header.index("ratio")
    speeds = [result["summary"]["output_tokens_per_s"] for result in results]
    assert [row[column] for row in rows] == ["1.00", f"{speeds[1] / speeds[0]:.2f}"]


def test_a_changed_load_is_named(results: list[Result]) -> None:
    assert differences(results) == []
    results[1]["config"]["seed"] = 2
    assert differences(results) == ["config 'seed' differs: 1, 2"]


def test_tables_print(results: list[Result]) -> None:
    console = Console(width=200, record=True)
    for table in result_tables(results[1]):
        console.print(table)
    text = console.export_text()
    assert "<b>$x$ [red]" in text
    assert "truncated" in text


def test_a_run_without_any_success_still_makes_a_report(make_config: MakeConfig) -> None:
    result = build_result(make_config(), LoadRun(), label="nothing")
    assert "<svg" in render_html([result, result])
    assert result_tables(result)


def test_the_report_is_one_file_that_fetches_nothing(results: list[Result]) -> None:
    page = render_html(results)
    assert page.count("<svg") == 4
    assert "&lt;b&gt;$x$" in page
    assert "<b>$x$" not in page
    # Addresses may occur as XML namespaces and in metadata, never where a browser loads them.
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\(\s*['\"]?http", page)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page)


def test_plots_are_written_twice(results: list[Result], tmp_path: Path) -> None:
    paths = save_plots(draw(results), tmp_path)
    assert {path.suffix for path in paths} == {".svg", ".png"}
    assert all(path.stat().st_size > 1000 for path in paths)


def test_without_matplotlib_the_error_names_the_extra(
    results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(StartupError, match=r"turret\[plot\]"):
        draw(results)


def test_a_run_can_be_started_without_a_loop(make_config: MakeConfig, unused_tcp_port: int) -> None:
    config = make_config(url=f"http://127.0.0.1:{unused_tcp_port}", num_requests=1)
    assert asyncio.run(run_load(config)).records[0].error == "connect"
