"""`turret fit lofit`: make a LoFiT adapter out of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from turret_adapters.fit.examples import Row
    from turret_adapters.fit.lofit import LoFit, LoFitSettings, Progress
    from turret_server.errors import StartupError

# Heavy imports stay inside the command: `turret --help` must not wait for torch.

_DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_STAGES = {"select": "selecting heads", "tune": "learning offsets"}


def fit_lofit(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or [bold]demo[/].")],
    data: Annotated[
        Path,
        typer.Option(
            help='JSONL: {"prompt", "completion"} or {"messages"} on every line; '
            "the last answer is learnt.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the adapter; must not exist or be empty.")
    ],
    heads: Annotated[str, typer.Option(help="How many heads to shift: 3% or a number.")] = "3%",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data per step.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Of the offsets.")] = 1e-2,
    batch: Annotated[int, typer.Option(min=1, help="Examples per training step.")] = 8,
    held_out: Annotated[
        str, typer.Option(help="Share of the examples that says when to stop.")
    ] = "10%",
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Longest example; longer ones are refused.")
    ] = 1024,
    seed: Annotated[int, typer.Option(help="Same seed, same data, same adapter.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Learn offsets of a few attention heads (LoFiT): an adapter of a few kilobytes.

    First every head learns a scale, and the heads that change most are selected;
    then these learn an offset. The model itself stays as it is. Needs the
    packages of the `train` extra: pip install 'turret\\[train]'.
    """
    from turret_adapters.errors import AdapterError
    from turret_adapters.fit.lofit import LoFitSettings
    from turret_server.errors import StartupError

    console = Console(stderr=True)
    _check_output(output)
    settings = LoFitSettings(
        heads=_amount("--heads", heads),
        held_out=_share("--held-out", held_out),
        select_epochs=epochs,
        tune_epochs=epochs,
        tune_learning_rate=learning_rate,
        batch=batch,
        seed=seed,
    )
    try:
        fitted = _fit(console, model, data, settings, max_tokens, threads)
    except AdapterError as error:
        raise StartupError(error.what, error.why, error.fix) from error
    fitted.save(output, _DEMO_BASE if model == "demo" else model)
    losses = fitted.losses
    console.print(
        f"held-out loss per token: {losses['base']:.3f} without, {losses['tune']:.3f} with "
        f"{len(fitted.heads)} heads in {len(fitted.layers.unique())} layers",
        highlight=False,
    )
    typer.echo(output)


def _fit(
    console: Console,
    model: str,
    data: Path,
    settings: LoFitSettings,
    max_tokens: int,
    threads: int | None,
) -> LoFit:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise _problem(
            "nothing was fitted",
            "transformers is not installed",
            "Run: pip install 'turret[train]'",
        ) from None
    from turret_adapters.fit import lofit
    from turret_adapters.fit.examples import encode, read_examples
    from turret_server.sources import resolve_model

    if threads is not None:
        torch.set_num_threads(threads)
    conversations = read_examples(data)  # before anything that takes time
    folder = resolve_model(model, progress=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [encode(tokenizer, conversation) for conversation in conversations]
    _check_lengths(rows, max_tokens)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with _bars(console) as bars:
        tasks = {name: bars.add_task(text, total=None, state="") for name, text in _STAGES.items()}

        def show(at: Progress) -> None:
            state = f"loss {at.loss:.3f}, held out {at.held_out:.3f}"
            bars.update(tasks[at.stage], total=at.total, completed=at.step, state=state)

        return lofit.fit_lofit(base, rows, settings, show)


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _problem(
            f"{str(folder)!r} was not written",
            "it exists and is not an empty folder",
            "Name another --output.",
        )


def _check_lengths(rows: list[Row], max_tokens: int) -> None:
    for number, row in enumerate(rows, 1):
        if len(row.ids) > max_tokens:
            raise _problem(
                f"example {number} was not used",
                f"it has {len(row.ids)} tokens, more than {max_tokens}",
                "Shorten it, or raise --max-tokens.",
            )


def _amount(option: str, text: str) -> float | int:
    return int(text) if text.isascii() and text.isdigit() else _share(option, text)


def _share(option: str, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise _problem(
            f"{option} {text!r} was not understood", "it is no share", "Write 3% or 0.03."
        )
    return share


def _problem(what: str, why: str, fix: str) -> StartupError:
    from turret_server.errors import StartupError

    return StartupError(what, why, fix)
