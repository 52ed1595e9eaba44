"""`turret serve`."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from turret_server.cli.config_file import ARGUMENTS, reread
from turret_server.cli.serve_flags import serve_config, take_serve_flags


@take_serve_flags
def serve(*, context: typer.Context, **flags: Any) -> None:
    """Serve a model and its adapters behind the OpenAI API.

    Without keys the server is open; that is fine on 127.0.0.1. Every flag can be set in the
    environment (TURRET_PORT, TURRET_API_KEY, …) or in a file given with --config.
    """
    config = serve_config(**flags)
    if context.obj is not None:  # the configuration is read again
        context.obj.append(config)
        return
    from turret_server.server import run_server

    again = partial(reread, context.command, context.meta[ARGUMENTS])
    run_server(config, None if flags["config"] is None else again)
