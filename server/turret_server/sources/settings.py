"""Adapters of the configuration: a source, or a table, on the command line as JSON.

[adapters]
sql = "someone/llama-sql-lora@v2"
legal = {source = "./legal", digest = "sha256:…", pin = true}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from turret_adapters.catalog import name_problem, parse_digest
from turret_server.errors import StartupError
from turret_server.sources.hub import parse_repo
from turret_server.sources.urls import url_problem

_MAX_SHARE = 1000.0
_FIX = "Correct it; docs/adapters.md shows both forms."


@dataclass(frozen=True, slots=True)
class AdapterSetting:
    """An adapter to serve from the start.

    Attributes:
        source: see `AdapterSources`.
        digest: the only content that is accepted, None for any.
        pin: keep it on the device, whatever else is asked for.
        share: of what its tenant is served, beside other models; 1 is the ordinary one.
    """

    source: str
    digest: str | None = None
    pin: bool = False
    share: float = 1.0


def parse_adapters(adapters: Mapping[str, str]) -> dict[str, AdapterSetting]:
    """Parse the adapters of the configuration.

    Raises:
        StartupError: names the adapter, and says what is wrong with it.
    """
    parsed: dict[str, AdapterSetting] = {}
    for name, text in adapters.items():
        try:
            if problem := name_problem(name):
                raise ValueError(problem)
            is_table = text.startswith("{")
            parsed[name] = _from_table(json.loads(text)) if is_table else AdapterSetting(text)
        except ValueError as error:
            what = f"the adapter {name!r} cannot be served"
            raise StartupError(what, str(error), _FIX) from None
    return parsed


def check_remotes(prefixes: Iterable[str]) -> None:
    """Check the URL prefixes that run-time loads may fetch from.

    Raises:
        StartupError: one is no URL.
    """
    for prefix in prefixes:
        scheme, separator, rest = prefix.partition("://")
        problem = None if separator and scheme else "it has no scheme such as hf:// or s3://"
        if problem is None and rest:
            is_version = scheme == "hf" and parse_repo(rest) is not None
            problem = None if is_version else url_problem(prefix)
        if problem is not None:
            raise StartupError(
                f"--adapter-remote {prefix!r} is not understood",
                problem,
                "Write a URL or the beginning of some, such as hf://owner or s3://bucket/folder.",
            )


def _from_table(table: dict[str, object]) -> AdapterSetting:
    if unknown := sorted(table.keys() - {"source", "digest", "pin", "share"}):
        raise ValueError(f"{unknown[0]!r} is not known; there is source, digest, pin and share")
    source, digest, pin = table.get("source"), table.get("digest"), table.get("pin", False)
    if not isinstance(source, str) or not source:
        raise ValueError("its 'source' is missing or no text")
    if not isinstance(digest, str | None):
        raise ValueError("its 'digest' is no text")
    if not isinstance(pin, bool):
        raise ValueError("its 'pin' is neither true nor false")
    share = table.get("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= _MAX_SHARE:
        raise ValueError(f"its 'share' is no number above 0 and at most {_MAX_SHARE:g}")
    return AdapterSetting(
        source, None if digest is None else parse_digest(digest), pin, float(share)
    )
