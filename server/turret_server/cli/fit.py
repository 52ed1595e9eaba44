"""`turret fit`: make adapters from data."""

from __future__ import annotations

import typer

from turret_server.cli import fit_cats, fit_lofit

app = typer.Typer(help="Make adapters from data.", no_args_is_help=True)
app.command()(fit_cats.cats)
app.command()(fit_cats.teal)
app.command("lofit")(fit_lofit.fit_lofit)
