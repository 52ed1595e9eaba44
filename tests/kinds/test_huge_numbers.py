"""A number of an adapter's files is far too large: no load takes long, whatever comes of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from tests.kinds.test_fuzz import FIRST_OF_KIND

from turret_adapters.errors import AdapterError
from turret_adapters.loading import read_adapter

HUGE = (1 << 20, (1 << 32) + 5, 10**30)
PATIENCE_S = 5


class TooSlow(BaseException):
    """Not an Exception: nothing on the way may take it for its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Seconds of the processor."""

    def ring(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value numbers stand."""
    if type(value) in (int, float):
        yield at
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*at, key))


def replaced(text: bytes, at: tuple[Any, ...], number: int) -> str:
    """A JSON text with another number at a place."""
    whole = inner = json.loads(text)
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = type(inner[at[-1]])(number)
    return json.dumps(whole)


@pytest.mark.parametrize("case", FIRST_OF_KIND, ids=lambda case: case.kind)
def test_every_number(labs, tmp_path, case):
    lab = labs(case.bases[0])
    folder = tmp_path / "adapter"
    case.make(folder, lab.model())
    for path in folder.glob("*.json"):
        text = path.read_bytes()
        for at in places(json.loads(text)):
            for number in HUGE:
                path.write_text(replaced(text, at, number))
                try:
                    with at_most(PATIENCE_S), suppress(AdapterError):
                        read_adapter(folder, lab.engine.decoder.shape, torch.float32)
                except TooSlow:
                    pytest.fail(f"{path.name}: {'.'.join(map(str, at))} = {number}")
        path.write_bytes(text)
