"""The `turret` command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from turret_server import __version__
from turret_server.cli import (
    adapters,
    ask,
    bench,
    chat,
    deploy,
    fit,
    layout,
    profile,
    reload,
    serve,
    tenants,
)
from turret_server.cli.config_file import ENVIRONMENT, ServeCommand
from turret_server.cli.terminal import print_problem
from turret_server.errors import TurretError

_typer = typer.Typer(
    name="turret",
    help="Serve many adaptations of one language model, in one batch, behind the OpenAI API.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_typer.command(cls=ServeCommand, context_settings={"auto_envvar_prefix": ENVIRONMENT})(serve.serve)
_typer.command()(reload.reload)
_typer.command()(chat.chat)
_typer.command()(layout.layout)
_typer.command()(ask.ask)
_typer.add_typer(deploy.app, name="deploy")
_typer.add_typer(adapters.app, name="adapters")
_typer.add_typer(fit.app, name="fit")
_typer.add_typer(tenants.tenants, name="tenants")
_typer.add_typer(tenants.keys, name="keys")
_typer.command()(tenants.usage)
_typer.command()(profile.profile)
_typer.add_typer(bench.app, name="bench")


@_typer.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"turret {__version__}")
        raise typer.Exit


def app() -> None:
    """Entry point: errors a user can act on are three lines, not a traceback."""
    try:
        _typer()
    except TurretError as error:
        print_problem(Console(stderr=True), error.what, error.why, error.fix)
        sys.exit(2)
