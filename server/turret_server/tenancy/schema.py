"""The tables. Times are Unix seconds, so that every database means the same by them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

VERSION = 4
NAME_CHARS = 64
MODEL_CHARS = 256

metadata = MetaData()

# One row: the version of these tables, and a number that grows with every change a server must see.
state = Table(
    "turret_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
)
tenants = Table(
    "turret_tenants",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(NAME_CHARS), nullable=False, unique=True),
    Column("weight", Float, nullable=False),
    # Quotas; null is no limit.
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrent_requests", BigInteger),
    Column("resident_adapters", BigInteger),
    Column("pages_per_minute", BigInteger),
    Column("queued_requests", BigInteger),
    Column("queued_tokens", BigInteger),
    Column("running_requests", BigInteger),
    Column("created_at", BigInteger, nullable=False),
)
# A key itself is never stored: what it hashes to, and the beginning by which people know it.
keys = Table(
    "turret_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", ForeignKey("turret_tenants.id"), nullable=False, index=True),
    Column("label", String(NAME_CHARS), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scopes", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("replaces", Integer),
)
# Adapters and recipes that a tenant may name; "*" is all of them.
grants = Table(
    "turret_grants",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", ForeignKey("turret_tenants.id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    UniqueConstraint("tenant_id", "name"),
)
# Every accepted request, once; usage is their sum.
requests = Table(
    "turret_requests",
    metadata,
    Column("id", String(64), primary_key=True),  # drawn by the server
    Column("day", String(10), nullable=False),  # UTC, "2026-11-28": when it was accepted
    Column("tenant", String(NAME_CHARS), nullable=False),
    Column("key", String(16), nullable=False),  # its prefix
    Column("model", String(MODEL_CHARS), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    # Of a fusion's members beside the request's own model: prompts and answers.
    Column("member_tokens", BigInteger, nullable=False, server_default="0"),
    Column("pages", BigInteger, nullable=False),
    # How it ended; "interrupted": with the process that served it.
    Column("status", String(16), nullable=False),
    Index("turret_requests_by_tenant", "day", "tenant"),
)
audit = Table(
    "turret_audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(NAME_CHARS), nullable=False),
    Column("action", String(32), nullable=False),
    Column("object", String(256), nullable=False),
    Column("before", JSON),
    Column("after", JSON),
)
