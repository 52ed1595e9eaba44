"""`turret adapters convert`: any low-rank adapter as plain LoRA, for servers of LoRA alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from turret_server.cli.adapter_folders import JsonOption, refuse, unpacked
from turret_server.cli.terminal import marked, note

if TYPE_CHECKING:
    from rich.table import Table

    from turret_adapters.convert import Converted
    from turret_adapters.loading import Origin
    from turret_adapters.spec import Site

# Heavy imports stay inside the command: `turret --help` must not wait for torch.


class Dtype(StrEnum):
    """What the tensors are stored as."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or archive; or a recipe with `method`, as JSON, whose sources "
            "are such paths."
        ),
    ],
    base: Annotated[
        str, typer.Option(help="The base model: a folder, a Hugging Face id, or demo.")
    ],
    to: Annotated[Path, typer.Option(help="A new folder.", metavar="FOLDER")],
    dtype: Annotated[
        Dtype, typer.Option(help="Of the tensors; bfloat16 takes half the room, and rounds.")
    ] = Dtype.FLOAT32,
    own_ranks: Annotated[
        bool,
        typer.Option(
            "--own-ranks",
            help="Every module keeps its own rank (rank_pattern): smaller, and for PEFT and vLLM "
            "alone. By default all get the largest, filled up with zeros.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter as the plain PEFT LoRA that it amounts to on its base.

    LoHa, LoKr, VeRA, VB-LoRA, HRA, MiSS, PiSSA, rsLoRA, compressed adapters and
    others are low rank once multiplied out; vLLM, SGLang, LoRAX and PEFT then
    read them as LoRA. What is more than that is refused by name.
    """
    import torch
    from safetensors import SafetensorError

    from turret_adapters.convert import convert as convert_adapter
    from turret_adapters.errors import AdapterError
    from turret_server.models.config import DecoderConfig
    from turret_server.models.shape import stored_shape
    from turret_server.sources import resolve_model

    folder = resolve_model(base, progress=Console(stderr=True).is_terminal)
    origin = _origin(source)
    has_vision = DecoderConfig.from_folder(folder).has_vision
    try:
        result = convert_adapter(
            origin,
            to,
            stored_shape(folder, torch.float32),
            dtype=getattr(torch, dtype),
            own_ranks=own_ranks,
            prefix="model.language_model." if has_vision else "model.",
        )
    except AdapterError as error:
        refuse(error)
    except (OSError, SafetensorError) as error:
        raise typer.BadParameter(f"{str(to)!r} cannot be written: {error}") from None
    if as_json:
        typer.echo(json.dumps(_report(result, dtype), indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(
        f"{marked(result.kind)} -> LoRA of rank [bold]{result.rank}[/], {result.num_bytes:,} bytes "
        f"of {dtype}, largest deviation of a module's change {result.deviation:.2g}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_ranks_table(result.ranks))
    for remark in result.notes:
        note(console, remark)


def _origin(source: str) -> Origin:
    """A path, or what to derive from some."""
    if not source.startswith("{"):
        return unpacked(Path(source))
    from turret_server.pipeline.recipe_config import parse_derivation

    try:
        wanted = parse_derivation(json.loads(source))
    except KeyError as error:
        raise typer.BadParameter(f"the recipe has no {error}") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    paths = [replace(one, path=str(unpacked(Path(one.path)))) for one in wanted.sources]
    return replace(wanted, sources=tuple(paths))


def _report(result: Converted, dtype: Dtype) -> dict[str, object]:
    return {
        "kind": result.kind,
        "rank": result.rank,
        "dtype": str(dtype),
        "num_bytes": result.num_bytes,
        "deviation": result.deviation,
        "digest": result.digest,
        "ranks": {str(site): rank for site, rank in result.ranks.items()},
        "notes": result.notes,
    }


def _ranks_table(ranks: Mapping[Site, int]) -> Table:
    """The adapter's own ranks by module, over the layers."""
    from rich.table import Table

    from turret_adapters.spec import ranges

    found: dict[tuple[str, int], list[int]] = {}
    for site, rank in ranks.items():
        found.setdefault((str(site.module), rank), []).append(site.layer)
    table = Table("module", "rank", "layers")
    table.columns[1].justify = "right"
    for (module, rank), layers in found.items():
        table.add_row(module, str(rank), ranges(sorted(layers)))
    return table
