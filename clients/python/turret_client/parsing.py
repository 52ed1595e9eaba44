"""JSON into flat classes. Fields that a newer server adds are ignored."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from turret_client.errors import InvalidAnswer

T = TypeVar("T")


def parse(cls: type[T], body: Any) -> T:
    """A flat class from a JSON object; null means the default.

    Raises:
        InvalidAnswer: a field is missing.
    """
    try:
        names = [f.name for f in fields(cls) if f.name in body]  # type: ignore[arg-type]
        known = {name: body[name] for name in names if body[name] is not None}
        for name, value in known.items():
            if isinstance(value, list):
                known[name] = tuple(value)
        return cls(**known)
    except (TypeError, KeyError) as error:
        raise invalid(f"it does not hold a {cls.__name__}: {error}") from error


def parse_list(cls: type[T], body: Any) -> tuple[T, ...]:
    """The `data` of an OpenAI list.

    Raises:
        InvalidAnswer: it is no list of these.
    """
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        raise invalid("it does not hold a list")
    return tuple(parse(cls, entry) for entry in body["data"])


def invalid(why: str) -> InvalidAnswer:
    """The error of an answer that is not Turret's."""
    return InvalidAnswer(
        "the answer of the server is not understood",
        why,
        "Check base_url: a proxy or another program may listen there.",
    )
