"""What each model of an engine has for the sequences that run it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from turret_server.engine.blocks import BlockPool
from turret_server.engine.messages import ErrorInfo
from turret_server.engine.sequence import Sequence


class AdapterGate(Protocol):
    """What the scheduler asks of an adapter store."""

    def try_pin(self, digests: Seq[str]) -> tuple[int, ...] | None:
        """Slots, or None: not resident yet, being fetched."""
        ...

    def unpin(self, digests: Seq[str]) -> None:
        """Undo one try_pin."""
        ...

    def failure(self, digests: Seq[str]) -> ErrorInfo | None:
        """Why these can never become resident, if so."""
        ...


@dataclass(frozen=True, slots=True)
class Room:
    """One model's blocks, context and adapters."""

    blocks: BlockPool
    max_model_len: int
    adapters: AdapterGate


Rooms = Mapping[str, Room]  # by model; "" is the main one


def obstacle(rooms: Rooms, lead: Sequence, max_rows: int) -> ErrorInfo | None:
    """Why the members of a request can never run side by side, if so.

    Args:
        rooms: all have blocks of one size.
        lead: of the request.
        max_rows: of a step that decodes.
    """
    members = lead.members
    if len(members) > max_rows:
        return ErrorInfo(
            "Unprocessable",
            f"{len(members)} members cannot decode together",
            f"a step has room for {max_rows}",
            "Fuse fewer, or raise --max-running.",
        )
    more, needed = lead.request.sampling.max_tokens, dict.fromkeys(rooms, 0)
    for member in members:
        room = rooms[member.request.model]
        length = min(len(member.tokens) + more, room.max_model_len)
        needed[member.request.model] += -(-length // room.blocks.block_tokens)
    for name, room in rooms.items():
        if needed[name] > room.blocks.num_blocks:
            return ErrorInfo(
                "PromptTooLong",
                f"the members need {needed[name]} blocks of KV cache {name!r} at their ends",
                f"it has {room.blocks.num_blocks}, of {room.blocks.block_tokens} tokens each",
                "Ask for fewer tokens, shorten the prompts, or enlarge the cache.",
            )
    return None


def failure(rooms: Rooms, lead: Sequence) -> ErrorInfo | None:
    """Why the adapters of a request can never become resident, if so."""
    found = (rooms[model].adapters.failure(uses) for model, uses in lead.adapters.items())
    return next(filter(None, found), None)


def try_pin(rooms: Rooms, lead: Sequence) -> bool:
    """Pin all adapters of a request and note their slots, or do nothing.

    Every store is asked, so that all fetch at once.
    """
    slots: dict[tuple[str, str], int] = {}
    wanted, pinned = lead.adapters, []
    for model, digests in wanted.items():
        found = rooms[model].adapters.try_pin(digests)
        if found is not None:
            pinned.append(model)
            slots |= {(model, d): slot for d, slot in zip(digests, found, strict=True)}
    if len(pinned) < len(wanted):
        unpin(rooms, {model: wanted[model] for model in pinned})
        return False
    for member in lead.members:
        model = member.request.model
        member.slots = tuple(slots[model, digest] for digest in member.recipe)
    return True


def unpin(rooms: Rooms, adapters: Mapping[str, Seq[str]]) -> None:
    """Undo one `try_pin` that succeeded, of these by model."""
    for model, digests in adapters.items():
        rooms[model].adapters.unpin(digests)
