"""`turret adapters`: look into folders, rewrite them, change what a running server serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from rich.console import Console

from turret_server.cli.adapter_convert import convert
from turret_server.cli.adapter_folders import JsonOption, refuse, unpacked
from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption
from turret_server.cli.terminal import marked, note, print_problem

if TYPE_CHECKING:
    from turret_server.cli.remote import Remote

T = TypeVar("T")

# Heavy imports stay inside the commands: `turret --help` must not wait for torch and aiohttp.

app = typer.Typer(
    help="Look into adapter folders, compress and convert them; list, load and unload a server's "
    "adapters.",
    no_args_is_help=True,
)

BaseOption = Annotated[
    str | None,
    typer.Option(help="The base model: a folder, a Hugging Face id, or demo.", show_default=False),
]
NameArgument = Annotated[str, typer.Argument(help="What clients send as `model`.")]


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="An adapter's folder or archive.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an adapter folder holds, and whether Turret can serve it.

    Needs no server and no base model. Where the adapter would be refused, the
    output says what is wrong, why, and how to fix it, and the exit code is 1.
    """
    from turret_adapters.inspect import describe
    from turret_server.cli.adapter_tables import description_tables

    report = {**describe(unpacked(path)), "path": str(path)}
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


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="An adapter's folder or archive.")],
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load an adapter as the server would, and print its digest and what was found.

    With --base, shapes and values are checked against that model, and it must
    fit beside it; without, against the smallest base that the files fit.
    Exit code 1 where it would be refused.
    """
    if base is None:
        inspect(path, as_json)
        if not as_json:
            note(Console(stderr=True), "no base was given: name one with --base to check the fit")
        return
    from turret_adapters.errors import AdapterError
    from turret_server.cli.adapter_check import verify as check
    from turret_server.cli.adapter_tables import description_tables
    from turret_server.sources import resolve_model

    folder = resolve_model(base, progress=Console(stderr=True).is_terminal)
    try:
        facts = check(unpacked(path), folder)
    except AdapterError as error:
        refuse(error)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    Console().print(description_tables({"path": str(path), **facts})[0])
    for remark in facts["notes"]:
        note(Console(), remark)


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(help="A LoRA or (IA)3 folder, as PEFT writes it.")],
    target: Annotated[Path, typer.Argument(help="A new folder.", metavar="DEST")],
    density: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the values to keep.")
    ] = 0.2,
    alpha: Annotated[
        str,
        typer.Option(
            help="Size of the kept values in standard deviations; auto: the adapter's change keeps "
            "its full size."
        ),
    ] = "auto",
    per_adapter: Annotated[
        bool,
        typer.Option(
            "--per-adapter",
            help="One threshold and size for the whole adapter, as the paper has it.",
        ),
    ] = False,
    base: BaseOption = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --base: compare the outputs on this text, not on our sample."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compress an adapter to three values per tensor (ComPEFT), and say what it costs.

    The result loses something: the drift is the relative error of each
    module's change, and large even where answers stay the same. With --base
    the adapters' outputs are compared, too. Evaluate on your task before you
    serve it.
    """
    from turret_adapters.compress.compeft import compress as compress_adapter
    from turret_adapters.errors import AdapterError
    from turret_server.cli.adapter_tables import drift_table
    from turret_server.sources import resolve_model

    try:
        size = None if alpha == "auto" else float(alpha)
        result = compress_adapter(
            source, target, density=density, alpha=size, per_tensor=not per_adapter
        )
    except AdapterError as error:
        refuse(error)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    outputs = None
    if base is not None:
        from turret_server.cli.adapter_check import SAMPLE_TEXT, output_drift

        folder = resolve_model(base, progress=Console(stderr=True).is_terminal)
        read = SAMPLE_TEXT if text is None else text.read_text(encoding="utf-8")
        try:
            outputs = output_drift(folder, source, target, read)
        except AdapterError as error:
            refuse(error)
    report: dict[str, Any] = {
        "num_bytes": result.num_bytes,
        "ratio": result.ratio,
        "bits_per_parameter": result.bits_per_parameter,
        "alpha": result.alpha,
        "drift": {str(site): value for site, value in result.drift.items()},
    }
    if outputs is not None:
        report["output_drift"], report["adapter_effect"] = outputs
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    console.print(
        f"{result.source_bytes:,} -> {result.num_bytes:,} bytes, [bold]{result.ratio:.1f}[/] times "
        f"smaller, {result.bits_per_parameter:.2f} bits per parameter, alpha {result.alpha:.3g}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(drift_table(result.drift))
    if outputs is not None:
        console.print(
            f"outputs: log-probabilities move by {outputs[0]:.3g} on average, and the adapter "
            f"itself moves them by {outputs[1]:.3g}",
            highlight=False,
            soft_wrap=True,
        )


app.command()(convert)


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
            help="The adapter's folder or archive. Where the server runs on this machine, relative "
            "to here; else a path that the server looks up below its adapter roots. Or a Hugging "
            "Face id or URL that its --adapter-remote allows."
        ),
    ],
    digest: Annotated[str | None, typer.Option(help="Refuse any other content.")] = None,
    pin: Annotated[
        bool | None,
        typer.Option(
            "--pin/--no-pin",
            help="Keep it on the device, or not. \\[default: as before]",
            show_default=False,
        ),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Serve an adapter under a name, beside the running requests.

    An adapter that had the name is replaced at once; requests in flight finish
    with the old one. A path must lie below an adapter root of the server, and a
    server with keys asks for an admin key.
    """
    fields = {"path": _seen_by(url, path), "digest": digest, "pin": pin}
    card = _ask(url, api_key, lambda remote: remote.put_adapter(name, **fields))
    kind, modules = card.get("kind", "adapter"), ", ".join(card.get("targets", ()))
    Console().print(
        f"serving [bold]{marked(name)}[/]: {marked(f'{kind} on {modules}')}", highlight=False
    )


@app.command()
def pin(name: NameArgument, url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Keep an adapter on the device, whatever else is asked for."""
    _ask(url, api_key, lambda remote: remote.put_adapter(name, pin=True))
    Console().print(f"pinned [bold]{marked(name)}[/]", highlight=False)


@app.command()
def unpin(name: NameArgument, url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Let an adapter leave the device when others need the room."""
    _ask(url, api_key, lambda remote: remote.put_adapter(name, pin=False))
    Console().print(f"unpinned [bold]{marked(name)}[/]", highlight=False)


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
