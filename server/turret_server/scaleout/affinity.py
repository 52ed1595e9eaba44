"""Which replica a request should go to: the one that has its adapters, unless it is overloaded.

Rendezvous hashing (Thaler and Ravishankar, 1998) gives every name a home that all routers agree on
without talking, and that moves only if its replica goes. Loads are bounded as in consistent hashing
with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018): no replica takes more than `BALANCE`
times the mean, so one popular adapter spreads over as many replicas as it needs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

BALANCE = 1.25  # times the mean load
_MAX_NAMES = 64  # of one request that are looked at


class _Body(msgspec.Struct):
    """The two fields that name adapters; everything else is passed over unread."""

    model: Any = None
    adapters: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def names_in(body: bytes, base_names: Collection[str] = ()) -> tuple[str, ...]:
    """Adapters and recipes that a body names, sorted; none where it cannot be read.

    Nothing is refused here: what is wrong with a body the replica says.

    Args:
        body: JSON, of any route.
        base_names: names of the base model, which is everywhere.
    """
    try:
        found = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    names = found.model.split("+", _MAX_NAMES) if isinstance(found.model, str) else []
    names = [name.partition(":")[0].strip() for name in names]
    if isinstance(found.adapters, list):
        for entry in found.adapters[:_MAX_NAMES]:
            name = entry.get("name") if isinstance(entry, dict) else entry
            if isinstance(name, str):
                names.append(name)
    return tuple(sorted({name for name in names if name and name not in base_names}))


def preferred(names: Sequence[str], replicas: Collection[str]) -> list[str]:
    """Replicas, best first: where most of the names are at home, then by rendezvous.

    Args:
        names: what the request needs; not empty.
        replicas: their ids.
    """
    home = [max(replicas, key=lambda replica: _score(name, replica)) for name in names]
    key = ",".join(names)
    return sorted(replicas, key=lambda r: (home.count(r), _score(key, r)), reverse=True)


def order(names: Sequence[str], loads: Mapping[str, int], slack: int) -> list[str]:
    """Replicas in the order in which they should be asked.

    Args:
        names: what the request needs; empty for the base model alone.
        loads: requests in flight by replica.
        slack: requests in flight that never count as too many.
    """
    if not names:
        shuffled = random.sample(list(loads), len(loads))
        return sorted(shuffled, key=loads.__getitem__)
    # At least one replica is below the bound, which is more than the mean with this request.
    bound = max(slack, math.ceil(BALANCE * (sum(loads.values()) + 1) / max(len(loads), 1)))
    ranked = preferred(names, loads) if loads else []
    return sorted(ranked, key=lambda replica: 0 if loads[replica] < bound else loads[replica])


def _score(name: str, replica: str) -> bytes:
    return blake2b(f"{name}\0{replica}".encode(errors="surrogatepass"), digest_size=8).digest()
