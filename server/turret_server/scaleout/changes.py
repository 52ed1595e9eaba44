"""Adapters loaded and unloaded at run time, told to every replica.

The replica that serves such a request writes down what became of it; the others do the same, and
so does a replica that starts later. What is kept is the last change of each name, not the history.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from turret_server.scaleout.wire import Forwarded

_MAX_REMOVED = 10_000  # names that are remembered as unloaded
_ADAPTER = "/v1/adapters/"
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a name means from now on.

    Attributes:
        name: as its owner calls it.
        owner: the tenant whose own adapter it is, "" for the operator's.
        body: of PUT /v1/adapters/{name}; None if the name was unloaded.
        digest: of the content that the first replica loaded; others refuse any other.
    """

    name: str
    owner: str = ""
    body: Mapping[str, Any] | None = None
    digest: str = ""


def change_in(request: Forwarded) -> Change | None:
    """What a request would change; None for one that loads and unloads nothing."""
    route = request.route
    is_own = route.startswith(_ADAPTER) and request.method in ("PUT", "DELETE")
    is_vllm = route in (_LOAD, _UNLOAD) and request.method == "POST"
    if not (is_own or is_vllm):
        return None
    try:
        body = msgspec.json.decode(request.body) if request.body else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        body = {}  # the replica will refuse it
    if is_own:
        name = route.removeprefix(_ADAPTER)
        put = {key: body[key] for key in ("path", "derive", "digest", "pin") if key in body}
        return Change(name=name, body=put if request.method == "PUT" else None)
    name = str(body.get("lora_name", ""))
    if route == _UNLOAD:
        return Change(name=name)
    put = {key: body[key] for key in ("digest", "pin") if key in body}
    return Change(name=name, body={"path": body.get("lora_path"), **put})


class ChangeLog:
    """The last change of every name, in the order of their versions.

    It lives in memory. If it is lost, replicas see another `epoch` and tell what they know.
    """

    def __init__(self) -> None:
        self._epoch = secrets.token_hex(8)
        self._version = 0
        self._last: dict[tuple[str, str], tuple[int, Change]] = {}
        self._removed: dict[tuple[str, str], None] = {}  # names that are unloaded, oldest first

    def put(self, change: Change) -> None:
        """Write down a change."""
        key = (change.owner, change.name)
        before = self._last.pop(key, None)
        if before is not None:
            change = _joined(before[1], change)
        self._version += 1
        self._last[key] = (self._version, change)
        self._removed.pop(key, None)
        if change.body is None:
            self._removed[key] = None
        if len(self._removed) > _MAX_REMOVED:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._last[oldest]

    def since(self, epoch: str, version: int) -> tuple[str, int, list[Change]]:
        """What changed after a version of an epoch: this epoch, the version now, the changes."""
        if epoch != self._epoch:
            version = 0
        found = [change for number, change in self._last.values() if number > version]
        return self._epoch, self._version, found

    def restore(self, changes: Iterable[Change]) -> None:
        """Take over what a replica knows from an earlier epoch, where nothing is known here."""
        for change in changes:
            if (change.owner, change.name) not in self._last:
                self.put(change)


def _joined(before: Change, change: Change) -> Change:
    """A change of the pin alone keeps where the adapter came from."""
    if change.body is None or before.body is None or {"path", "derive"} & set(change.body):
        return change
    return replace(change, body={**before.body, **change.body})
