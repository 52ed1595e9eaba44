"""The JSON file of one run: written by `turret bench serve`, read by `turret bench compare`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turret_server.errors import BadRequest
from turret_server.loadtest.config import LoadConfig
from turret_server.loadtest.driver import LoadRun
from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.stats import summarise

# Raised whenever a field changes its meaning; readers refuse what they do not know.
FORMAT_VERSION = 1

Result = dict[str, Any]


def build_result(
    config: LoadConfig,
    run: LoadRun,
    *,
    label: str,
    server: Any = None,
    save_requests: bool = False,
) -> Result:
    """Wrap the numbers of a run with everything needed to repeat it.

    Args:
        config: what was sent.
        run: what came back.
        label: name of the run in tables and plots.
        server: what the server says about itself.
        save_requests: keep one entry per request, with its gaps.
    """
    records = sorted(run.records, key=lambda record: record.index)
    result: Result = {
        "format_version": FORMAT_VERSION,
        "label": label,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": config.url,
        "server": server,
        **describe_environment(),
        "config": config.describe(),
        "summary": summarise(run, config.objectives),
        "error_examples": _error_examples(run),
    }
    if save_requests:
        result["requests"] = [record.to_json() for record in records]
    return result


def write_result(result: Result, path: Path) -> None:
    """Write a result as JSON, in one move: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_result(path: Path) -> Result:
    """Read a result.

    Raises:
        BadRequest: the file is missing, is not JSON, or is no result of this format.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"Result {str(path)!r} not read", str(error)) from error
    version = result.get("format_version") if isinstance(result, dict) else None
    if version != FORMAT_VERSION:
        raise BadRequest(
            f"Result {str(path)!r} not read",
            f"its format_version is {version!r}; this build reads {FORMAT_VERSION}",
            "Run `turret bench serve` again to make it anew",
        )
    return result


def _error_examples(run: LoadRun) -> dict[str, str]:
    """Return the first message seen of each kind of error."""
    examples: dict[str, str] = {}
    for record in run.records:
        if record.error is not None:
            examples.setdefault(record.error, record.detail)
    return examples
