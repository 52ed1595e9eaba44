"""The API's fake engine and its app: what they tell of requests."""

from __future__ import annotations

from tests.server.api.conftest import engine, make_app, make_client, settings, tokenizer

__all__ = ["engine", "make_app", "make_client", "settings", "tokenizer"]
