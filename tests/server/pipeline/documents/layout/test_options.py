from __future__ import annotations

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.layout import LayoutOptions


def test_limits_from_none_to_the_most_are_taken():
    assert LayoutOptions(max_blank_lines=0, max_columns=0).max_columns == 0
    assert LayoutOptions(max_blank_lines=10, max_columns=2000).max_columns == 2000


@pytest.mark.parametrize("limit", ["max_blank_lines", "max_columns"])
@pytest.mark.parametrize("value", [-1, 2001])
def test_a_limit_out_of_range_is_refused_by_name(limit: str, value: int):
    with pytest.raises(BadRequest, match=f"{limit} {value}"):
        LayoutOptions(**{limit: value})  # pyright: ignore[reportArgumentType]
