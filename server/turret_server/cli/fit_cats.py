"""`turret fit cats` and `turret fit teal`: activation thresholds from plain text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from turret_adapters.fit.cats import CatsFit
    from turret_adapters.fit.teal import TealFit
    from turret_adapters.fit.text import Step, TextWindows

# Heavy imports stay inside the commands: `turret --help` must not wait for transformers.

_Model = Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or `demo`.")]
_Text = Annotated[
    Path, typer.Option("--text", help="Plain text (UTF-8) like what the model is to read.")
]
_Output = Annotated[Path, typer.Option("--output", help="The folder to write; made if missing.")]
_MaxTokens = Annotated[int, typer.Option(help="Tokens of the text to use.", min=2)]
_Window = Annotated[int, typer.Option(help="Tokens that the model sees at once.", min=2)]
_HeldOut = Annotated[
    float, typer.Option(help="Share of the text that only judges the result.", min=0.01, max=0.5)
]


def cats(
    model: _Model,
    text: _Text,
    output: _Output,
    sparsity: Annotated[
        float, typer.Option(help="Share of the MLP's neurons that a token leaves out.")
    ] = 0.5,
    max_tokens: _MaxTokens = 100_000,
    window: _Window = 512,
    held_out: _HeldOut = 0.1,
) -> None:
    """Fit CATS: neurons of the MLP that hardly fire are left out."""
    from turret_adapters.fit import cats as fit

    def run(loaded: PreTrainedModel, windows: TextWindows, step: Step) -> CatsFit:
        return fit.fit_cats(loaded, windows, sparsity, step)

    def show(found: CatsFit) -> list[tuple[str, ...]]:
        return [
            ("layer", "threshold", "dead", "dead for two tokens"),
            *(
                (str(layer), f"{t:.4g}", f"{dead:.1%}", f"{both:.1%}")
                for layer, (t, dead, both) in enumerate(
                    zip(found.thresholds, found.sparsity, found.shared, strict=True)
                )
            ),
        ]

    def steps(loaded: PreTrainedModel, windows: TextWindows) -> int:
        return fit.num_steps(windows)

    _fit(model, text, output, (max_tokens, window, held_out), steps, run, show)


def teal(
    model: _Model,
    text: _Text,
    output: _Output,
    sparsity: Annotated[
        float, typer.Option(help="Share of every block's weights that a token leaves out.")
    ] = 0.4,
    step_size: Annotated[
        float, typer.Option(help="How much further a linear of q's size is cut at a time.")
    ] = 0.05,
    max_tokens: _MaxTokens = 20_000,
    window: _Window = 512,
    held_out: _HeldOut = 0.1,
) -> None:
    """Fit TEAL: small inputs of every linear are left out."""
    from turret_adapters.fit import teal as fit

    def run(loaded: PreTrainedModel, windows: TextWindows, step: Step) -> TealFit:
        return fit.fit_teal(loaded, windows, sparsity, step, step_size=step_size)

    def show(found: TealFit) -> list[tuple[str, ...]]:
        return [
            ("layer", *(name.removesuffix("_proj") for name in found.sparsity)),
            *(
                (str(layer), *(f"{zeros:.0%}" for zeros in row))
                for layer, row in enumerate(zip(*found.sparsity.values(), strict=True))
            ),
        ]

    found = _fit(model, text, output, (max_tokens, window, held_out), fit.num_steps, run, show)
    typer.echo(f"with every linear cut to the same share: {found.perplexity_even:.3f}")


def _fit(
    model: str,
    text: Path,
    output: Path,
    cut: tuple[int, int, float],
    num_steps: Callable[[PreTrainedModel, TextWindows], int],
    fit: Callable[[PreTrainedModel, TextWindows, Step], Any],
    show: Callable[[Any], list[tuple[str, ...]]],
) -> Any:
    """Load, fit with a progress bar, write the adapter and a report, and print what came out."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from turret_adapters.errors import AdapterError
    from turret_adapters.fit.text import read_windows
    from turret_server.cli.terminal import print_problem

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("loading the model", total=None)
            loaded, tokenizer, name = _load(model)
            max_tokens, length, held_out = cut
            windows = read_windows(
                tokenizer, text, length=length, max_tokens=max_tokens, held_out=held_out
            )
            progress.update(task, total=num_steps(loaded, windows))

            def step(stage: str) -> None:
                progress.update(task, description=stage, advance=1)

            found = fit(loaded, windows, step)
    except AdapterError as error:
        print_problem(console, error.what, error.why, error.fix)
        raise typer.Exit(2) from None
    _write(output, found.config(name), asdict(found) | _facts(windows))
    header, *rows = show(found)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    out = Console()
    out.print(table)
    out.print(
        f"perplexity on {windows.num_held_out} held-out tokens: {found.perplexity_before:.3f} -> "
        f"{found.perplexity_after:.3f} "
        f"({found.perplexity_after / found.perplexity_before - 1:+.1%})",
        f"written to {output}",
        sep="\n",
        highlight=False,
    )
    return found


def _load(model: str) -> tuple[PreTrainedModel, Any, str]:
    """The model in float32, its tokenizer, and the name to write down."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from turret_adapters.errors import AdapterError
    from turret_server.demo import demo_model

    source = str(demo_model(progress=False)) if model == "demo" else model
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        what = f"the model {model!r} was not loaded"
        raise AdapterError(what, str(error), "Name a model folder or a Hugging Face id.") from None
    is_folder = Path(source).is_dir()
    return loaded, tokenizer, Path(source).resolve().name if is_folder else source


def _facts(windows: TextWindows) -> dict[str, int]:
    return {"fitted_tokens": windows.num_fitted, "held_out_tokens": windows.num_held_out}


def _write(folder: Path, config: dict[str, Any], report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("turret_adapter.json", config), ("report.json", report)):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
