"""From what the engine found in an adapter to the record of a name; and the errors of names."""

from __future__ import annotations

import time

from turret_adapters.catalog import AdapterRecord, parse_digest
from turret_server.engine.messages import AdapterInfo
from turret_server.errors import BadRequest, Conflict, NotFound


def make_record(
    name: str,
    path: str,
    source: str,
    info: AdapterInfo,
    roots: tuple[str, ...] | None,
    pinned: bool,
) -> AdapterRecord:
    """What is served under a name from now on."""
    return AdapterRecord(
        name=name,
        digest=info.digest,
        path=path,
        roots=roots,
        source=source,
        pinned=pinned,
        sites=info.sites,
        kind=info.kind,
        rank=info.rank,
        targets=tuple(info.targets),
        num_layers=info.num_layers,
        unfit=info.unfit,
        num_parameters=info.num_parameters,
        num_bytes=info.num_bytes,
        base_model=info.base_model,
        loaded_at=time.time(),
        notes=tuple(info.notes),
        primitives=tuple(info.primitives),
        num_virtual_tokens=info.num_virtual_tokens,
    )


def checked_digest(text: str | None) -> str | None:
    """A digest that a client asked for.

    Raises:
        BadRequest: it is none.
    """
    if text is None:
        return None
    try:
        return parse_digest(text)
    except ValueError as error:
        raise BadRequest(
            f"{text[:128]!r} is no digest", str(error), "Correct it.", param="digest"
        ) from None


def not_loaded(name: str) -> NotFound:
    """The error for a name that is no adapter."""
    return NotFound(
        f"the adapter {name[:128]!r} is not loaded",
        "it was never loaded, or is unloaded already",
        "GET /v1/adapters lists what is.",
        param="name",
    )


def taken(name: str) -> Conflict:
    """The error for an adapter with the name of a model or a recipe."""
    return Conflict(
        f"the name {name!r} is taken",
        "it is the base model or a named recipe",
        "Choose another name.",
        param="name",
    )
