"""`turret adapters`: look into adapter folders, and change what a running server serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from rich.console import Console

from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption
from turret_server.cli.terminal import marked, print_problem

if TYPE_CHECKING:
    from turret_server.cli.remote import Remote

T = TypeVar("T")

# Heavy imports stay inside the commands: `turret --help` must not wait for torch and aiohttp.

app = typer.Typer(
    help="Look into adapter folders; list, load and unload a running server's adapters.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
NameArgument = Annotated[str, typer.Argument(help="What clients send as `model`.")]


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="An adapter's folder, as PEFT writes it.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an adapter folder holds, and whether Turret can serve it.

    Needs no server and no base model. Where the adapter would be refused, the
    output says what is wrong, why, and how to fix it, and the exit code is 1.
    """
    from turret_adapters.inspect import describe
    from turret_server.cli.adapter_tables import description_tables

    report = describe(path)
    refusal = report["refusal"]
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for table in description_tables(report):
            Console().print(table)
        for remark in report.get("notes", ()):
            Console().print(f"[yellow]note:[/] {marked(remark)}", highlight=False)
        if refusal:
            print_problem(Console(stderr=True), refusal["what"], refusal["why"], refusal["fix"])
    if refusal:
        raise typer.Exit(1)


@app.command("list")
def list_adapters(
    url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonOption = False
) -> None:
    """List the adapters that a running server serves."""
    from turret_server.cli.adapter_tables import served_table

    cards = _ask(url, api_key, lambda remote: remote.adapters())
    if as_json:
        typer.echo(json.dumps(cards, indent=2, ensure_ascii=False))
    elif cards:
        Console().print(served_table(cards))
    else:
        typer.echo("No adapters are loaded. `turret adapters load NAME FOLDER` loads one.")


@app.command()
def load(
    name: NameArgument,
    path: Annotated[
        str,
        typer.Argument(
            help="The adapter's folder. Where the server runs on this machine, relative to here; "
            "else a path that the server looks up below its adapter roots."
        ),
    ],
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Serve an adapter under a name, beside the running requests.

    An adapter that had the name is replaced at once; requests in flight finish
    with the old one. The folder must lie below an adapter root of the server,
    and a server with keys asks for an admin key.
    """
    card = _ask(url, api_key, lambda remote: remote.load_adapter(name, _seen_by(url, path)))
    kind, modules = card.get("kind", "adapter"), ", ".join(card.get("targets", ()))
    Console().print(
        f"serving [bold]{marked(name)}[/]: {marked(f'{kind} on {modules}')}", highlight=False
    )


@app.command()
def unload(name: NameArgument, url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Stop serving an adapter; requests in flight finish with it."""
    _ask(url, api_key, lambda remote: remote.unload_adapter(name))
    Console().print(f"unloaded [bold]{marked(name)}[/]", highlight=False)


def _ask(url: str, api_key: str | None, call: Callable[[Remote], Coroutine[Any, Any, T]]) -> T:
    from turret_server.cli.remote import Remote

    async def ask() -> T:
        async with Remote(url, api_key) as remote:
            return await call(remote)

    return asyncio.run(ask())


def _seen_by(url: str, path: str) -> str:
    """The path as the server finds it: its working directory may be another than ours."""
    folder = Path(path).expanduser()
    on_this_machine = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    return str(folder.absolute()) if on_this_machine and folder.exists() else path
