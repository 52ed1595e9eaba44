"""Which adapters are being served, by name. Torch-free: the API process owns it.

A *name* is what clients call an adapter; a *digest* identifies its content. Several names may
share a digest. A digest is referenced by its names and by the requests that use it; only one that
nothing references may leave the engine.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_NAME_CHARS = 128

# Commas separate names in the routing metric, "+" and ":" build recipes, slashes would hide in
# URLs. \s and \W are not excluded wholesale: names may be written in any script.
_FORBIDDEN = re.compile(r"[,+:/\\\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


def name_problem(name: str) -> str | None:
    """Say why a string can't name an adapter; None when it can."""
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return "a client would take it for a step in the path of a URL"
    if len(name) > MAX_NAME_CHARS:
        return f"it has {len(name)} characters; {MAX_NAME_CHARS} are allowed"
    if found := _FORBIDDEN.search(name):
        return (
            f"it contains {found.group()!r}; commas, '+', ':', slashes, blanks and control "
            "characters are not allowed"
        )
    return None


def parse_digest(text: str) -> str:
    """A digest as records hold it, from what a person wrote: "sha256:" may precede it.

    Raises:
        ValueError: it is no digest.
    """
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise ValueError("a digest is 64 hexadecimal digits, as `turret adapters verify` shows it")
    return found[1].lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One served name.

    Attributes:
        name: what clients send as `model`.
        digest: identity of the content.
        path: the folder it was loaded from; for a derived adapter, what it was made of.
        source: where that came from: the folder itself, an archive, a repository or a URL.
        kind: the front end that compiled it, such as "lora".
        rank: the largest rank, 0 for kinds without one.
        targets: module names it touches.
        num_layers: of the models that it fits, by name; "" is the main one.
        unfit: why it does not fit the other models.
        num_parameters: of the published tensors.
        num_bytes: in the served dtype.
        base_model: as the adapter's own config names it.
        loaded_at: Unix time in seconds.
        primitives: what it compiled to.
        num_virtual_tokens: positions that it puts before the prompt.
        sites: the layers of each target, {"q_proj": "0-29"}.
        pinned: the operator wants it on the device, whatever else is asked for.
        notes: what a user may want to know.
        roots: folders that may be read for it, None for all.
    """

    name: str
    digest: str
    path: str
    kind: str
    rank: int
    targets: tuple[str, ...]
    num_layers: Mapping[str, int]
    num_parameters: int
    num_bytes: int
    base_model: str | None
    loaded_at: float
    primitives: tuple[str, ...] = ()
    num_virtual_tokens: int = 0
    source: str = ""
    sites: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    notes: tuple[str, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] | None = None

    @property
    def is_model(self) -> bool:
        """Can it be named as `model`? Others take part in fusions, on an auxiliary model."""
        return "" in self.num_layers


class Catalog:
    """Names, their records, and who references each digest.

    Every method is synchronous and leaves the catalog consistent, so a reader in the same event
    loop sees a replacement either not at all or completely.
    """

    def __init__(self) -> None:
        self._records: dict[str, AdapterRecord] = {}
        self._uses: Counter[str] = Counter()  # digest -> requests in flight
        self._last_used: dict[str, float] = {}  # digest -> Unix time

    def copy(self) -> Catalog:
        """The same names, to look ahead; whoever uses what is not known to it."""
        other = Catalog()
        other._records = dict(self._records)
        return other

    def get(self, name: str) -> AdapterRecord | None:
        """The record of a name."""
        return self._records.get(name)

    def records(self) -> list[AdapterRecord]:
        """Every record, oldest name first: what an engine that restarted must load again."""
        return list(self._records.values())

    def names(self) -> list[str]:
        """Every served name."""
        return list(self._records)

    def put(self, record: AdapterRecord) -> AdapterRecord | None:
        """Serve a record under its name; returns the record that it replaced."""
        old = self._records.get(record.name)
        self._records[record.name] = record
        return old

    def remove(self, name: str) -> AdapterRecord | None:
        """Stop serving a name; returns its record, None when there was none."""
        return self._records.pop(name, None)

    def acquire(self, digests: Iterable[str]) -> None:
        """Count a request that uses these digests."""
        digests = list(digests)
        self._uses.update(digests)
        self._last_used |= dict.fromkeys(digests, time.time())

    def release(self, digests: Iterable[str]) -> list[str]:
        """Undo one `acquire`; returns the digests that nothing references any more."""
        free = []
        for digest in digests:
            self._uses[digest] -= 1
            if self._uses[digest] <= 0:
                del self._uses[digest]
            if not self.is_referenced(digest):
                self._last_used.pop(digest, None)
                free.append(digest)
        return free

    def uses(self, digest: str) -> int:
        """Requests in flight that use a digest."""
        return self._uses.get(digest, 0)

    def last_used(self, digest: str) -> float | None:
        """When a request last began to use a digest, in Unix time."""
        return self._last_used.get(digest)

    def is_referenced(self, digest: str) -> bool:
        """Whether a name or a request in flight still needs the digest."""
        return digest in self._uses or any(r.digest == digest for r in self._records.values())
