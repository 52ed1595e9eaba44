"""What the commands about adapter folders share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from turret_server.cli.terminal import print_problem

if TYPE_CHECKING:
    from turret_adapters.errors import AdapterError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def unpacked(path: Path) -> Path:
    """The folder itself, or one in the cache with what an archive holds."""
    from turret_server.sources.archive import is_archive, unpack
    from turret_server.sources.cached import FetchLimits

    is_packed = is_archive(path.name) and path.is_file()
    return unpack(path.resolve(), FetchLimits()) if is_packed else path


def refuse(error: AdapterError) -> NoReturn:
    """Say what is wrong with an adapter, and end with exit code 1."""
    print_problem(Console(stderr=True), error.what, error.why, error.fix)
    raise typer.Exit(1)
