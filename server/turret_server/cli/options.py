"""Options of every command that talks to a running server."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        help="The running server.",
        envvar="TURRET_URL",
        show_envvar=True,
        rich_help_panel="Server",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="Key to send, where the server asks for one.",
        envvar="TURRET_API_KEY",
        show_envvar=True,
        rich_help_panel="Server",
    ),
]
