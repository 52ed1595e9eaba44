"""Results as a table: on the terminal, and in docs/clients.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

_BEGIN, _END = "<!-- results: written by tests/acceptance/run.py -->", "<!-- end of results -->"
_HEAD = "| client | version | what was exercised | result |\n|---|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one client.

    Attributes:
        client: its name.
        version: its version.
        exercised: the checks, in order.
        error: what failed; "" if nothing did.
        turret: version of Turret.
    """

    client: str
    version: str
    exercised: Sequence[str]
    error: str
    turret: str

    @property
    def verdict(self) -> str:
        """One line: what came of it, and when."""
        state = f"**fails**: {self.error}" if self.error else f"all {len(self.exercised)} pass"
        return f"{state} (Turret {self.turret}, {date.today().isoformat()})"

    @property
    def row(self) -> str:
        """A row of the document's table."""
        cells = (self.client, self.version, "; ".join(self.exercised), self.verdict)
        return "| " + " | ".join(re.sub(r"\s+", " ", c).replace("|", "\\|") for c in cells) + " |"


def print_table(results: Sequence[Result]) -> None:
    """Print one row per client."""
    table = Table("client", "version", "exercised", "result")
    for result in results:
        table.add_row(result.client, result.version, "; ".join(result.exercised), result.verdict)
    Console().print(table, highlight=False, markup=False)


def update_document(path: Path, results: Sequence[Result], order: Sequence[str]) -> None:
    """Replace the rows of these clients in the results section; other rows stay.

    Args:
        path: a Markdown file with a results section.
        results: of this run.
        order: all clients, as the rows shall come.
    """
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    section, _, after = rest.partition(_END)
    rows = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("| ")}
    rows |= {result.client: result.row for result in results}
    kept = "".join(f"{rows[name]}\n" for name in order if name in rows)
    path.write_text(f"{before}{_BEGIN}\n{_HEAD}{kept}{_END}{after}", encoding="utf-8")
