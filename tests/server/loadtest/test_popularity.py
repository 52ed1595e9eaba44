from collections import Counter
from itertools import islice

import numpy as np
import pytest

from turret_server.errors import BadRequest
from turret_server.loadtest.popularity import parse_popularity


def _counts(text: str, n: int, draws: int) -> Counter[int]:
    choices = parse_popularity(text).choices(n, np.random.default_rng(0))
    return Counter(islice(choices, draws))


def test_uniform_asks_for_every_name_equally() -> None:
    counts = _counts("uniform", 4, 20_000)
    assert [counts[i] / 20_000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.01)


def test_zipf_follows_the_power_law() -> None:
    counts = _counts("zipf:1.2", 5, 50_000)
    for rank in range(2, 6):
        assert counts[rank - 1] / counts[0] == pytest.approx(rank**-1.2, rel=0.08)


def test_round_robin_takes_names_in_turn() -> None:
    choices = parse_popularity("round-robin").choices(3, np.random.default_rng(0))
    assert list(islice(choices, 7)) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("text", ["zipf", "zipf:0", "zipf:-1", "zipf:x", "zipf:inf", "normal", ""])
def test_unknown_forms_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="not understood"):
        parse_popularity(text)


@pytest.mark.parametrize("text", ["uniform", "round-robin", "zipf:1.5"])
def test_text_survives_a_round_trip(text: str) -> None:
    assert str(parse_popularity(text)) == text
