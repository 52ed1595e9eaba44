"""`turret reload`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption
from turret_server.cli.terminal import marked


def reload(
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Let a running server read its turret.toml again.

    Adapters, recipes, keys, and where loads may read change at once and as a
    whole; a file with a mistake changes nothing. Needs an admin key.
    """
    from turret_server.cli.remote import Remote

    async def ask() -> dict[str, Any]:
        async with Remote(url, api_key) as remote:
            return await remote.call("POST", "/v1/admin/reload")

    answer = asyncio.run(ask())
    if as_json:
        typer.echo(json.dumps(answer))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"changed: {marked(', '.join(answer['changed']) or 'nothing')}")
    if names := answer["needs_restart"]:
        console.print(f"[yellow]needs a restart:[/] {marked(', '.join(names))}")
    for recipe, adapters in answer["waiting"].items():
        names = marked(", ".join(adapters))
        console.print(f"[yellow]note:[/] {marked(recipe)} is no model until {names} is loaded")
