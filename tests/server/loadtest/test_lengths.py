import numpy as np
import pytest

from turret_server.errors import BadRequest
from turret_server.loadtest.lengths import parse_lengths


def _draw(text: str, n: int = 5000) -> np.ndarray:
    rng, lengths = np.random.default_rng(0), parse_lengths(text)
    return np.array([lengths.sample(rng) for _ in range(n)])


def test_fixed_is_always_the_same() -> None:
    assert set(_draw("17", 20)) == {17}


def test_uniform_reaches_both_ends() -> None:
    drawn = _draw("uniform:3:6")
    assert sorted(set(drawn)) == [3, 4, 5, 6]


def test_lognormal_has_its_median_and_spread() -> None:
    drawn = _draw("lognormal:200:0.5")
    assert np.median(drawn) == pytest.approx(200, rel=0.03)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.05)


def test_lognormal_is_cut_at_its_maximum_and_at_one() -> None:
    drawn = _draw("lognormal:2:2:50")
    assert drawn.max() == 50
    assert drawn.min() == 1


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "-4", "fixed:1:2", "uniform:5:2", "uniform:5", "lognormal:0:1", "lognormal:9:-1",
     "lognormal:9:1:3", "lognormal:9:nan", "poisson:3"],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_lengths(text)


@pytest.mark.parametrize(
    "text", ["64", "uniform:1:9", "lognormal:200:0.8", "lognormal:200:0.8:900"]
)
def test_text_survives_a_round_trip(text: str) -> None:
    assert str(parse_lengths(text)) == text
