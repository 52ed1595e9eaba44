"""Databases to test on: SQLite, and a PostgreSQL server of our own where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_ENGINES = ["sqlite", "postgresql"] if _BINARIES or shutil.which("initdb") else ["sqlite"]


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that lives as long as the tests; it listens on a socket alone."""
    folder = tmp_path_factory.mktemp("postgresql")
    bin_ = _BINARIES[0] if _BINARIES else Path(str(shutil.which("initdb"))).parent
    # It refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    user = "postgres" if as_user else Path.home().owner()
    if as_user:
        for parent in (folder, *folder.parents):
            if parent == Path("/tmp"):
                break
            parent.chmod(0o755)
        shutil.chown(folder, "postgres")
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, cwd=folder, capture_output=True)

    run(str(bin_ / "initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    run(
        str(bin_ / "pg_ctl"),
        "-D",
        str(data),
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        options,
        "start",
    )
    yield f"postgresql+psycopg://{user}@/postgres?host={folder}"
    run(str(bin_ / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture(params=_ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'turret.db'}"
    server: str = request.getfixturevalue("postgresql")
    name = f"t{uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """An empty database with tables."""
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def admin(database: Database) -> Administration:
    """An admin who works on it."""
    return Administration(database, "cli")
