"""From what the user calls a model or an adapter to a local folder that holds it."""

from turret_server.sources.model import DEMO, resolve_model

__all__ = ["DEMO", "resolve_model"]
