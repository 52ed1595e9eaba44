"""Every line of the client's guide, in its order, against a server with adapters and tenants."""

from __future__ import annotations

import asyncio
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_documents import picture

import turret_adapters
import turret_client

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DEMO = Path(turret_adapters.__file__).parent / "demo"
GUIDE = (ROOT / "clients/python/README.md").read_text()
PLACES = {
    # What the guide's reader has, and this test has not.
    'client.adapters.load("sql", "hf://me/sql-lora", digest="sha256:4862…", pin=True)': (
        'client.adapters.load("sql", "adapters/sql", digest=digest, pin=True)'
    ),
    'model="formal:0.7+sql"': 'model="dates:0.7+sql"',
    'adapters=["formal", "sql"]': 'adapters=["dates", "sql"]',
    'adapters={"formal": 0.7,': 'adapters={"dates": 0.7,',
    "client.chat(question,": "client.chat(question, max_tokens=8,",
    'client.chat("Tell me a story.",': 'client.chat("Tell me a story.", max_tokens=8,',
    '("Hello", stream=True)': '("Hello", stream=True, max_tokens=8)',
    '("Hello", model="sql")': '("Hello", model="sql", max_tokens=8)',
    '"adapters/': '"',
}


def program() -> list[str]:
    """The guide's blocks of Python, those of asyncio as a coroutine `main`."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
    for old, new in PLACES.items():
        assert any(old in block for block in blocks), old
        blocks = [block.replace(old, new) for block in blocks]
    return [
        "import turret_client\nasync def main():\n" + textwrap.indent(block, "    ")
        if "async with" in block
        else block
        for block in blocks
    ]


def test_the_guide_runs_as_it_stands(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "adapters"
    for name in ("dates", "sql"):
        shutil.copytree(DEMO / name, folder / name)
    (tmp_path / "invoice.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    flags = [f"--adapter={name}={folder / name}" for name in ("dates", "sql")]
    database = f"--database={tmp_path / 'turret.db'}"
    key = "tk-operator-of-the-test"
    with serve(
        *flags,
        f"--adapter-root={folder}",
        database,
        f"--admin-key={key}",
        f"--state-dir={tmp_path / 'state'}",
    ) as server:
        monkeypatch.setenv("TURRET_URL", server.url)
        monkeypatch.setenv("TURRET_API_KEY", key)
        names: dict[str, Any] = {
            "question": "Which singers are older than 30?",
            "admin_key": key,
            "digest": turret_client.Client().adapters.get("sql").digest,
        }
        for block in program():
            exec(compile(block.replace('"http://127.0.0.1:8000"', ""), "README.md", "exec"), names)
            if "async def main" in block:
                asyncio.run(names["main"]())
        rows = names["acme"].usage()
    assert [(row.model, row.requests, row.completion_tokens > 0) for row in rows] in (
        [],  # the ledger carries usage into the database within seconds
        [("sql", 1, True)],
    )
    printed = capsys.readouterr().out
    assert "Paris" in printed
    assert "963.60" in printed
    assert "Total: 42.00" in re.sub(" +", " ", printed)
