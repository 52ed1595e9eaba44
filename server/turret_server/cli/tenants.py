"""`turret tenants`, `turret keys`, `turret usage`: who may call, and what they used.

They work on the database itself; servers that read it follow within a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from turret_server.cli.terminal import marked, note
from turret_server.tenancy.principal import Quotas, Scope

if TYPE_CHECKING:
    from turret_server.tenancy.administration import Administration

_NO_ARGS: dict[str, Any] = {"no_args_is_help": True}
tenants = typer.Typer(help="Tenants: their quotas, and the adapters they may use.", **_NO_ARGS)
keys = typer.Typer(help="Keys of tenants.", **_NO_ARGS)

DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="TURRET_DATABASE",
        help="As `turret serve` has it: a path for SQLite, or postgresql+psycopg://...",
    ),
]
TenantArgument = Annotated[str, typer.Argument(help="Name of the tenant.")]
PrefixArgument = Annotated[str, typer.Argument(help='How the key begins: "tk-1a2b3c4d".')]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WeightOption = Annotated[
    float | None, typer.Option(help="Share beside other tenants; 1 is the ordinary one.")
]
QuotaOption = Annotated[int | None, typer.Option(min=-1, help="-1 is no limit.")]
_DAY = 86_400
_WIDEST = 10_000  # columns; more than any table has
_SHORT = {
    "prompt_tokens": "in",
    "cached_tokens": "cached",
    "completion_tokens": "out",
    "member_tokens": "members",
}


@contextmanager
def _administration(url: str) -> Iterator[Administration]:
    from turret_server.tenancy.administration import Administration
    from turret_server.tenancy.database import Database

    database = Database(url)
    try:
        yield Administration(database, "cli")
    finally:
        database.close()


@tenants.command("create")
def create_tenant(
    name: TenantArgument,
    database: DatabaseOption,
    weight: WeightOption = None,
    requests_per_minute: QuotaOption = None,
    tokens_per_minute: QuotaOption = None,
    concurrent_requests: QuotaOption = None,
    resident_adapters: QuotaOption = None,
    pages_per_minute: QuotaOption = None,
    queued_requests: QuotaOption = None,
    queued_tokens: QuotaOption = None,
    running_requests: QuotaOption = None,
) -> None:
    """Make a tenant. Without grants it may use the base model alone."""
    quotas = _given(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        resident_adapters=resident_adapters,
        pages_per_minute=pages_per_minute,
        queued_requests=queued_requests,
        queued_tokens=queued_tokens,
        running_requests=running_requests,
    )
    with _administration(database) as admin:
        admin.create_tenant(name, weight=1.0 if weight is None else weight, quotas=Quotas(**quotas))
    Console().print(f"tenant {marked(name)}")


@tenants.command("change")
def change_tenant(
    name: TenantArgument,
    database: DatabaseOption,
    weight: WeightOption = None,
    requests_per_minute: QuotaOption = None,
    tokens_per_minute: QuotaOption = None,
    concurrent_requests: QuotaOption = None,
    resident_adapters: QuotaOption = None,
    pages_per_minute: QuotaOption = None,
    queued_requests: QuotaOption = None,
    queued_tokens: QuotaOption = None,
    running_requests: QuotaOption = None,
) -> None:
    """Change a tenant's weight or quotas; what is not named stays."""
    quotas = _given(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        resident_adapters=resident_adapters,
        pages_per_minute=pages_per_minute,
        queued_requests=queued_requests,
        queued_tokens=queued_tokens,
        running_requests=running_requests,
    )
    with _administration(database) as admin:
        admin.change_tenant(name, weight=weight, quotas=quotas)


@tenants.command("list")
def list_tenants(database: DatabaseOption, as_json: JsonOption = False) -> None:
    """List tenants with their quotas and grants."""
    with _administration(database) as admin:
        found = admin.tenants()
    names = [field.name for field in fields(Quotas)]
    rows = [
        {"name": t.name, "weight": t.weight, **asdict(t.quotas), "grants": sorted(t.grants)}
        for t in found
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("name", "weight", "quotas", "grants", box=None, pad_edge=False)
    for row in rows:
        limits = [
            f"{name.replace('_', ' ')}: {row[name]:,}" for name in names if row[name] is not None
        ]
        shown = "\n".join(limits) or "none"
        table.add_row(row["name"], f"{row['weight']:g}", shown, marked(", ".join(row["grants"])))
    _print_whole(table)


@tenants.command()
def grant(
    name: TenantArgument,
    adapters: Annotated[list[str], typer.Argument(help='Adapters or recipes; "*" is all.')],
    database: DatabaseOption,
) -> None:
    """Let a tenant use adapters and recipes."""
    with _administration(database) as admin:
        admin.grant(name, adapters)


@tenants.command()
def withdraw(
    name: TenantArgument,
    adapters: Annotated[list[str], typer.Argument(help="What was granted.")],
    database: DatabaseOption,
) -> None:
    """Take grants back."""
    with _administration(database) as admin:
        admin.withdraw(name, adapters)


@keys.command("create")
def create_key(
    tenant: TenantArgument,
    database: DatabaseOption,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do. May be repeated; default: infer.")
    ] = None,
    label: Annotated[str, typer.Option(help="What people call it.")] = "",
    days: Annotated[float | None, typer.Option(help="It ends after so many.")] = None,
) -> None:
    """Make a key and print it, this once."""
    lifetime_s = None if days is None else _seconds(days, _DAY, "--days")
    with _administration(database) as admin:
        key = admin.create_key(
            tenant, label=label, scopes=scope or (Scope.INFER,), lifetime_s=lifetime_s
        )
    _show_key(key)


@keys.command()
def rotate(
    prefix: PrefixArgument,
    database: DatabaseOption,
    overlap_h: Annotated[float, typer.Option(help="Hours that the old still works.")] = 1,
) -> None:
    """Make a new key like an old one, which ends soon."""
    with _administration(database) as admin:
        key = admin.rotate_key(prefix, overlap_s=_seconds(overlap_h, 3600, "--overlap-h"))
    _show_key(key)


@keys.command()
def revoke(prefix: PrefixArgument, database: DatabaseOption) -> None:
    """End a key now."""
    with _administration(database) as admin:
        admin.revoke_key(prefix)


@keys.command("list")
def list_keys(
    database: DatabaseOption,
    tenant: Annotated[str | None, typer.Option(help="Of this one alone.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List keys; the keys themselves are stored nowhere."""
    with _administration(database) as admin:
        found = admin.keys(tenant)
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found], indent=1))
        return
    table = Table()
    for name in ("key", "tenant", "label", "scopes", "created", "expires", "revoked"):
        if name in ("label", "scopes"):
            table.add_column(name, overflow="fold", min_width=len("adapters,"))
        else:
            table.add_column(name, no_wrap=True)
    for key in found:
        times = (_shown(t) for t in (key.created_at, key.expires_at, key.revoked_at))
        table.add_row(key.prefix, key.tenant, marked(key.label), ", ".join(key.scopes), *times)
    _print_whole(table)


def usage(
    database: DatabaseOption,
    tenant: Annotated[str | None, typer.Option(help="Of this one alone.")] = None,
    since: Annotated[str, typer.Option(help="First day, 2026-11-28.")] = "",
    until: Annotated[str, typer.Option(help="Last day.")] = "9999-12-31",
    as_json: JsonOption = False,
) -> None:
    """What was used per day, tenant, key and model."""
    with _administration(database) as admin:
        rows = admin.usage(tenant=tenant, since=since, until=until)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_whole(_table(rows))
    else:
        note(Console(stderr=True), "nothing was used")


def _seconds(amount: float, unit: int, option: str) -> int:
    if not math.isfinite(amount):
        raise typer.BadParameter(f"{amount} is no time.", param_hint=option)
    return int(amount * unit)


def _given(**quotas: int | None) -> dict[str, int | None]:
    """Those that were named; -1 is none."""
    return {name: None if x == -1 else x for name, x in quotas.items() if x is not None}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        shown = _SHORT.get(name, name)
        if name == "model":  # the one that may be long gives way
            table.add_column(shown, overflow="fold", min_width=12, max_width=40)
        else:
            justify = "right" if isinstance(value, int) else "left"
            table.add_column(shown, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else marked(v) for v in row.values()))
    return table


def _print_whole(table: Table) -> None:
    """Print a table with numbers and names whole, also where the terminal is too narrow."""
    console = Console()
    roomy = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, roomy, table).minimum)
    console.print(table, crop=False)


def _show_key(key: str) -> None:
    note(Console(stderr=True), "keep it: it is stored nowhere and not shown again")
    typer.echo(key)


def _shown(time: int | None) -> str:
    return "" if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%MZ")
