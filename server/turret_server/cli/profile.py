"""`turret profile`: what a running engine spends its time on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption
from turret_server.cli.terminal import marked, note


def profile(
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    steps: Annotated[int, typer.Option(min=1, max=32, help="Steps to watch.")] = 8,
    wait_s: Annotated[float, typer.Option(min=0.1, max=60, help="How long at most.")] = 30.0,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace here instead; Perfetto opens it.")
    ] = None,
) -> None:
    """Profile the next steps of a running server; needs an admin key where keys are set."""
    body = {"steps": steps, "wait_s": wait_s, "trace": trace is not None}
    found = asyncio.run(_ask(url, api_key, body))
    if trace is not None:
        trace.write_bytes(msgspec.json.encode(found))
        note(Console(stderr=True), f"wrote {trace}")
        return
    table = Table("operation", "calls", "own ms", "total ms")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["operations"]:
        times = (f"{row[name] * 1000:.2f}" for name in ("own_s", "total_s"))
        table.add_row(marked(row["name"]), str(row["calls"]), *times)
    Console().print(table)
    note(Console(stderr=True), f"{found['steps']} steps in {found['seconds']:.2f} s")


async def _ask(url: str, api_key: str | None, body: dict[str, Any]) -> Any:
    from turret_server.cli.remote import Remote

    async with Remote(url, api_key) as remote:
        return await remote.call("POST", "/v1/admin/profile", body)
