"""turret.toml as defaults of `turret serve`'s flags, at its start and whenever it is read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from turret_server.config import ServeConfig, read_config
from turret_server.errors import StartupError

ENVIRONMENT = "TURRET"  # every flag is read from the environment, too: TURRET_PORT
ARGUMENTS = "turret.arguments"  # where a context keeps them

# Tables of turret.toml, and the flags that say the same.
_TABLES = {
    "adapters": "adapter",
    "recipes": "recipe",
    "auxiliaries": "auxiliary",
    "scorers": "scorer",
    "tasks": "task",
}
# Lists of turret.toml; a flag of each is named in the singular, and may be repeated.
_LISTS = (
    "adapter_dirs",
    "adapter_remotes",
    "adapter_roots",
    "admin_keys",
    "api_keys",
    "document_remotes",
    "gateway_keys",
    "metrics_keys",
    "served_names",
)


class ServeCommand(TyperCommand):
    """Keeps its arguments, to read them again over a file that has changed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


def reread(command: Any, arguments: Sequence[str]) -> ServeConfig:
    """What a command line says, over the file as it is now.

    Args:
        command: `turret serve`; with an object in its context it appends to that, and serves not.
        arguments: as it was started with.

    Raises:
        StartupError: it cannot be served.
    """
    found: list[ServeConfig] = []
    try:
        with command.make_context(
            command.name, list(arguments), obj=found, auto_envvar_prefix=ENVIRONMENT
        ) as context:
            command.invoke(context)
    except typer.BadParameter as error:
        raise StartupError(
            "the configuration cannot be served", error.format_message(), "Correct the file."
        ) from error
    return found[0]


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file supply the defaults of the flags.

    Raises:
        StartupError: it cannot be read, or holds a setting that does not exist.
    """
    if path is not None:
        known = {f.name for f in fields(ServeConfig)} | {"config"}
        values = read_config(path, known)
        for table, flag in _TABLES.items():
            pairs = values.pop(table, {})
            if not isinstance(pairs, dict):
                raise StartupError(
                    f"the configuration {str(path)!r} cannot be served",
                    f"{table!r} is no table",
                    f"Write [{table}], and below it NAME = VALUE.",
                )
            values[flag] = [f"{name}={_as_flag(value)}" for name, value in pairs.items()]
        for several in _LISTS:
            values[several.removesuffix("s")] = values.pop(several, [])
        context.default_map = {name: value for name, value in values.items() if value != []}
    return path


def _as_flag(value: Any) -> str:
    """A setting as a flag says it: text, or JSON for tables."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
