"""Databases to test on: SQLite, and a PostgreSQL server of our own where one is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

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
    user = "postgres" if os.geteuid() == 0 else Path.home().owner()
    as_user = {"user": user, "group": user} if os.geteuid() == 0 else {}
    if as_user:
        for parent in (folder, folder.parent, folder.parent.parent):
            parent.chmod(0o755)
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run(
        [bin_ / "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "-U", user, "--no-sync"],
        check=True,
        cwd=folder,
        capture_output=True,
        **as_user,
    )
    server = subprocess.Popen(
        [bin_ / "postgres", "-D", data, "-k", folder, "-h", "", "-c", "fsync=off"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        **as_user,
    )
    url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
    for _ in range(300):
        with contextlib.suppress(OperationalError), create_engine(url).connect():
            break
        time.sleep(0.1)
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(60)


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
