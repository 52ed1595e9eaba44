"""How a page is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turret_server.errors import BadRequest

# What may be asked for: white space costs memory and tokens.
MOST_BLANK_LINES = 10
MOST_COLUMNS = 2000

Mode = Literal["turret", "latin", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOptions:
    """Options of `lay_out`.

    Attributes:
        mode: "turret": rows, phrases and columns, as `layout/__init__.py` tells. "latin": LATIN as
            published. "plain": the words in the given order, one space between any two.
        max_blank_lines: at most so many empty lines for a vertical gap; 0 for none.
        max_columns: no white space beyond this column, other than between words.
        mirror: in mode "turret", a page read from right to left begins its lines with what stands
            rightmost; if false, columns keep their places and only words take their reading order.

    Raises:
        BadRequest: if a limit is negative or beyond what may be asked for.
    """

    mode: Mode = "turret"
    max_blank_lines: int = 1
    max_columns: int = 400
    mirror: bool = True

    def __post_init__(self) -> None:
        for name, most in (("max_blank_lines", MOST_BLANK_LINES), ("max_columns", MOST_COLUMNS)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise BadRequest(
                    f"{name} {value} cannot be laid out",
                    f"it is not between 0 and {most}",
                    f"Choose one from 0 to {most}.",
                )
