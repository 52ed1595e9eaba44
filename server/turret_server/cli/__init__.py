"""`turret`: one file per command group."""

from turret_server.cli.main import app

__all__ = ["app"]
