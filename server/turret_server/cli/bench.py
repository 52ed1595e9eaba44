"""`turret bench`: put load on any OpenAI-compatible endpoint, and compare the results."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from turret_server.loadtest.config import LoadConfig
    from turret_server.loadtest.driver import LoadRun

# Heavy imports stay inside the commands: `turret --help` must not wait for numpy and aiohttp.

app = typer.Typer(help="Measure any OpenAI-compatible server, and compare.", no_args_is_help=True)

_TARGET, _LOAD, _REQUEST, _REPORT = "What to ask", "Load", "Requests", "Report"


@app.command()
def serve(
    url: Annotated[
        str, typer.Option(help="Root of the server, without /v1.", rich_help_panel=_TARGET)
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model or adapter name; repeat for several. Default: the first one served.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    popularity: Annotated[
        str,
        typer.Option(
            help="uniform, round-robin or zipf:ALPHA (the first --model is most popular).",
            rich_help_panel=_TARGET,
        ),
    ] = "uniform",
    endpoint: Annotated[
        str, typer.Option(help="completions or chat.", rich_help_panel=_TARGET)
    ] = "completions",
    body: Annotated[
        list[str] | None,
        typer.Option(
            help="Extra JSON fields: OBJECT for all requests, MODEL=OBJECT for one model's. "
            """llama.cpp picks adapters so: --body 'a0={"lora":[{"id":0,"scale":1.0}]}'""",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key to send; repeat for several tenants.",
            rich_help_panel=_TARGET,
            envvar="TURRET_BENCH_API_KEY",
            show_envvar=True,
        ),
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="Tenant with a name of its own: NAME=KEY.", rich_help_panel=_TARGET),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", help="Closed loop: N workers.", rich_help_panel=_LOAD),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Open loop: arrivals per second, Poisson.", rich_help_panel=_LOAD),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            help="Shape of the gamma-distributed gaps: 1 is Poisson, less is burstier.",
            rich_help_panel=_LOAD,
        ),
    ] = 1.0,
    burst_size: Annotated[
        int, typer.Option(help="Requests arriving at one instant.", rich_help_panel=_LOAD)
    ] = 1,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of requests: prompt or prompt_length, output_tokens, model, tenant, "
            "timestamp_s; replayed at its timestamps unless --concurrency or --rate is given.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option("--num-requests", "-n", help="Requests to send.", rich_help_panel=_LOAD),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds after which no request starts.", rich_help_panel=_LOAD),
    ] = None,
    warmup: Annotated[
        int,
        typer.Option(
            help="Requests before the measurement, over all models in turn; not counted.",
            rich_help_panel=_LOAD,
        ),
    ] = 0,
    timeout: Annotated[
        float, typer.Option(help="Limit of one request, in seconds.", rich_help_panel=_LOAD)
    ] = 600.0,
    seed: Annotated[
        int,
        typer.Option(help="Same seed, same requests, byte for byte.", rich_help_panel=_LOAD),
    ] = 0,
    prompt_words: Annotated[
        str | None,
        typer.Option(
            help="Prompt length: N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX]. Default: 60.",
            rich_help_panel=_REQUEST,
        ),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(help="The same in exact tokens; needs --tokenizer.", rich_help_panel=_REQUEST),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json, or a folder with one.", rich_help_panel=_REQUEST),
    ] = None,
    output_tokens: Annotated[
        str, typer.Option(help="Tokens to generate, like --prompt-words.", rich_help_panel=_REQUEST)
    ] = "64",
    ignore_eos: Annotated[
        bool,
        typer.Option(help="Generate exactly --output-tokens.", rich_help_panel=_REQUEST),
    ] = True,
    stream: Annotated[
        bool, typer.Option(help="Stream the answers.", rich_help_panel=_REQUEST)
    ] = True,
    temperature: Annotated[float, typer.Option(rich_help_panel=_REQUEST)] = 0.0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help="Objective METRIC:MS with METRIC ttft, itl (the request's own p99), tpot or e2e; "
            "a request is good when it meets all.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the result as JSON.", rich_help_panel=_REPORT),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Name in tables. Default: the URL.", rich_help_panel=_REPORT),
    ] = None,
    save_requests: Annotated[
        bool,
        typer.Option(
            "--save-requests", help="Keep every request in the JSON.", rich_help_panel=_REPORT
        ),
    ] = False,
) -> None:
    """Send a load to an OpenAI-compatible server and measure what comes back.

    A closed loop: turret bench serve -c 8 -n 64 --model a --model b

    An open loop: turret bench serve --rate 4 --duration 60 --goodput ttft:500 --goodput itl:50
    """
    from rich.console import Console

    from turret_server.loadtest import flags
    from turret_server.loadtest.environment import served_models, server_version
    from turret_server.loadtest.result import build_result, write_result
    from turret_server.loadtest.table import result_tables

    console = Console(stderr=True)
    tenants = flags.tenants(api_key or (), tenant or ())
    models = model or asyncio.run(served_models(url, tenants[0].api_key))[:1]
    targets, extra_body = flags.targets(models, body or ())
    prompt_lengths, tokenizer_json = flags.prompts(prompt_words, prompt_tokens, tokenizer)
    config = flags.load_config(
        url=url,
        endpoint=endpoint,
        targets=targets,
        popularity=popularity,
        tenants=tenants,
        concurrency=concurrency,
        rate=rate,
        burstiness=burstiness,
        burst_size=burst_size,
        trace=trace,
        num_requests=num_requests,
        duration_s=duration,
        prompt_lengths=prompt_lengths,
        tokenizer_json=tokenizer_json,
        output_lengths=output_tokens,
        stream=stream,
        ignore_eos=ignore_eos,
        temperature=temperature,
        extra_body=extra_body,
        num_warmup=warmup,
        timeout_s=timeout,
        objectives=goodput or (),
        seed=seed,
    )
    run = _run(config, console)
    result = build_result(
        config,
        run,
        label=label or url,
        server=asyncio.run(server_version(url, tenants[0].api_key)),
        save_requests=save_requests,
    )
    if output is not None:
        write_result(result, output)
    for table in result_tables(result):
        Console().print(table)
    _print_errors(result, console)
    if output is not None:
        console.print(f"Result written to {output}")
    if result["summary"]["completed"] == 0:
        raise typer.Exit(1)


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="JSON files of `turret bench serve`; the first is the base")
    ],
    html: Annotated[Path | None, typer.Option(help="Write one self-contained HTML report.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write the plots as SVG and PNG into this folder.")
    ] = None,
) -> None:
    """Put several results side by side: a table, plots and an HTML report."""
    from rich.console import Console

    from turret_server.loadtest.result import read_result
    from turret_server.loadtest.table import comparison_table, differences

    console = Console(stderr=True)
    loaded = [read_result(path) for path in results]
    Console().print(comparison_table(loaded))
    for sentence in differences(loaded):
        console.print(f"note: {sentence}", style="yellow", markup=False)
    if html is not None:
        from turret_server.loadtest.html import render_html

        html.write_text(render_html(loaded), encoding="utf-8")
        console.print(f"Report written to {html}")
    if plots is not None:
        from turret_server.loadtest.plots import draw, save_plots

        for path in save_plots(draw(loaded), plots):
            console.print(f"Plot written to {path}")


def _run(config: LoadConfig, console: Console) -> LoadRun:
    """Run the load on uvloop where there is one, with a progress line on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from turret_server.loadtest.driver import run_load

    try:
        import uvloop

        run_loop: Any = uvloop.run
    except ImportError:
        run_loop = asyncio.run
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Redrawn twice a second: the generator shares its cores with the server.
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=2,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("requests", total=config.num_requests)
        return run_loop(run_load(config, lambda _: progress.advance(task)))


def _print_errors(result: dict[str, Any], console: Console) -> None:
    for kind, detail in result["error_examples"].items():
        console.print(f"{kind}: {detail}", style="red", markup=False)
    if warmup_errors := result["summary"]["generator"]["warmup_errors"]:
        console.print(f"warm-up errors: {warmup_errors}", style="red", markup=False)
