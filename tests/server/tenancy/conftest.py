"""Databases to test on: SQLite, and a PostgreSQL server of our own where one is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
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


class PostgreSQL:
    """A server of our own on a socket alone.

    Attributes:
        url: of its first database.
    """

    def __init__(self, folder: Path) -> None:
        self._bin = _BINARIES[0] if _BINARIES else Path(str(shutil.which("initdb"))).parent
        # It refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else Path.home().owner()
        self._as_user = {"user": user, "group": user} if os.geteuid() == 0 else {}
        if self._as_user:
            shutil.chown(folder, user)
        self._folder, self._data = folder, folder / "data"
        subprocess.run(
            [
                *(self._bin / "initdb", "-D", self._data, "-A", "trust", "-E", "UTF8"),
                *("-U", user, "--no-sync"),
            ],
            check=True,
            cwd=folder,
            capture_output=True,
            **self._as_user,
        )
        self.url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
        self.start()

    def start(self) -> None:
        """Start it, also after a crash."""
        self._process = subprocess.Popen(
            [
                *(self._bin / "postgres", "-D", self._data, "-k", self._folder),
                *("-h", "", "-c", "fsync=off"),
            ],
            cwd=self._folder,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self._as_user,
        )
        for _ in range(300):
            with contextlib.suppress(OperationalError), create_engine(self.url).connect():
                return
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to it and all its backends."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it, and every connection."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


@contextlib.contextmanager
def _running() -> Iterator[PostgreSQL]:
    # Not below pytest's own folder, which every pytest that starts closes to other users.
    with tempfile.TemporaryDirectory(prefix="turret-postgresql-") as folder:
        server = PostgreSQL(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server that lives as long as the tests."""
    with _running() as server:
        yield server.url


@pytest.fixture
def mortal_postgresql() -> Iterator[PostgreSQL]:
    """A server that a test may kill."""
    if "postgresql" not in _ENGINES:
        pytest.skip("needs PostgreSQL's programs")
    with _running() as server:
        yield server


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
