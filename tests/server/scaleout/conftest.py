"""The API's fake engine and its app, as a replica has them."""

from __future__ import annotations

from tests.server.api.conftest import app, client, engine, make_app, settings, tokenizer

__all__ = ["app", "client", "engine", "make_app", "settings", "tokenizer"]
