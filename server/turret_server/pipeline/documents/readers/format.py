"""What a format consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from turret_server.pipeline.documents.readers.builder import Builder
from turret_server.pipeline.documents.readers.glimpse import Glimpse


@dataclass(frozen=True, slots=True)
class Format:
    """One form in which OCR results come.

    Attributes:
        name: by which a request names it, "textract".
        title: as its makers call it, for errors.
        fits: whether content looks like it, by its outermost parts. Formats exclude one another.
        collect: adds the pages of the content to a builder; raises `BadRequest` where it cannot.
        schemas: types of the JSON that `collect` takes, the first that fits; none: it takes bytes.
    """

    name: str
    title: str
    fits: Callable[[Glimpse], bool]
    collect: Callable[[Any, Builder], None]
    schemas: tuple[Any, ...] = ()
