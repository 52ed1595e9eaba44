"""The database behind the tables: SQLite in a file by default, PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import DDL, Connection, create_engine, event, insert, inspect, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from turret_server.errors import BadRequest, StartupError, TurretError
from turret_server.tenancy import schema

_WAIT_S = 5  # for another process that writes, or for a server that answers
# libpq's own. A network that swallows packets ends a connection within ten seconds; TCP itself
# tries for fifteen minutes, in which no revoked key would be noticed.
_POSTGRESQL = {
    "connect_timeout": _WAIT_S,
    "keepalives_idle": _WAIT_S,
    "keepalives_interval": 1,
    "keepalives_count": _WAIT_S,
    "tcp_user_timeout": 2000 * _WAIT_S,  # ms
}


class DatabaseDown(TurretError):
    """The database does not answer, or not as it should."""

    status, type, code = 503, "service_unavailable", "database_unavailable"
    retry_after_s = 5.0


class Database:
    """Transactions on the tables, which are made where they are missing.

    Args:
        url: a path for SQLite, or as SQLAlchemy writes them:
            "postgresql+psycopg://user:password@host/turret". What it says of timeouts holds.

    Raises:
        StartupError: the URL is wrong, the database cannot be opened, or its tables are newer.
    """

    def __init__(self, url: str) -> None:
        url = url if "://" in url else f"sqlite:///{url}"
        try:
            parsed = make_url(url)
            options: dict[str, Any] = {"pool_pre_ping": True}
            if parsed.get_backend_name() == "sqlite":
                options["connect_args"] = {"timeout": _WAIT_S}
            elif parsed.get_dialect().driver in ("psycopg", "psycopg2"):
                options["connect_args"] = {
                    name: value for name, value in _POSTGRESQL.items() if name not in parsed.query
                }
            self._engine = create_engine(parsed, **options)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise StartupError(
                f"the database {_shown(url)!r} cannot be used",
                str(error).splitlines()[0],
                "Write /path/to/turret.db, or postgresql+psycopg://user@host/turret "
                "with `pip install 'turret[postgresql]'`.",
            ) from error
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        if self.is_sqlite:
            event.listen(self._engine, "connect", _set_up_sqlite)
        try:
            with self._engine.begin() as connection:
                schema.metadata.create_all(connection)
                version = connection.scalar(select(schema.state.c.version))
                if version is None:
                    row = {"id": 1, "version": schema.VERSION, "revision": 0}
                    connection.execute(insert(schema.state).values(row))
                elif version < schema.VERSION:
                    _upgrade(connection, version)
        except SQLAlchemyError as error:
            raise StartupError(
                f"the database {_shown(url)!r} cannot be opened",
                _reason(error),
                "Check its address, its rights, and that its folder exists.",
            ) from error
        if version is not None and version > schema.VERSION:
            raise StartupError(
                f"the database {_shown(url)!r} cannot be used",
                f"its tables are of version {version}, this server knows {schema.VERSION}",
                "Use the server that made them, or a newer one.",
            )

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back on an error.

        Raises:
            BadRequest: it cannot hold a value, such as PostgreSQL a text with NUL.
            DatabaseDown: the database failed; nothing has changed.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except DataError as error:
            raise BadRequest(
                "the database cannot hold a value of the request",
                _reason(error),
                "Correct it.",
            ) from error
        except SQLAlchemyError as error:
            raise DatabaseDown(
                "the database does not answer",
                _reason(error),
                "See the server's log; what is served goes on.",
            ) from error

    def revision(self) -> int:
        """Grows with every change that servers must see."""
        with self.begin() as connection:
            return connection.scalar(select(schema.state.c.revision)) or 0

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()


def changed(connection: Connection) -> None:
    """Let every server that reads the tables know, once the transaction is committed."""
    more = schema.state.c.revision + 1
    connection.execute(update(schema.state).values(revision=more))


def _upgrade(connection: Connection, version: int) -> None:
    """Add the columns that older tables lack; what they hold stays."""
    this = schema.state.c.version == version
    done = update(schema.state).where(this).values(version=schema.VERSION)
    if not connection.execute(done).rowcount:  # the row is locked: another process was faster
        return
    found = inspect(connection)
    for table in schema.metadata.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                spec = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(DDL(f"ALTER TABLE {table.name} ADD COLUMN {spec}"))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
    cursor.execute("PRAGMA synchronous=FULL")  # what is committed survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "..."


def _reason(error: SQLAlchemyError) -> str:
    """The driver's own words, without the statement and its values."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
