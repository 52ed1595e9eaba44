from itertools import islice

import numpy as np
import pytest

from turret_server.errors import BadRequest
from turret_server.loadtest.arrivals import Arrivals


def _gaps(arrivals: Arrivals, n: int = 20_000) -> np.ndarray:
    return np.diff(list(islice(arrivals.times(np.random.default_rng(0)), n)))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("burst_size", [1, 8])
def test_long_run_rate_does_not_depend_on_the_shape(burstiness: float, burst_size: int) -> None:
    gaps = _gaps(Arrivals(rate_per_s=5.0, burstiness=burstiness, burst_size=burst_size))
    # Standard error of the mean at 0.25 and bursts of 8 is 4%; the seed is fixed.
    assert gaps.mean() == pytest.approx(1 / 5.0, rel=0.08)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_does(burstiness: float) -> None:
    gaps = _gaps(Arrivals(rate_per_s=5.0, burstiness=burstiness))
    variation = gaps.std() / gaps.mean()
    assert variation == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_burst_arrives_at_one_instant() -> None:
    times = list(islice(Arrivals(rate_per_s=10.0, burst_size=4).times(np.random.default_rng(0)), 8))
    assert times[:4] == [0.0] * 4
    assert len(set(times[4:])) == 1
    assert times[4] > 0


@pytest.mark.parametrize(
    "settings",
    [{"rate_per_s": 0}, {"rate_per_s": 1, "burstiness": -1}, {"rate_per_s": float("inf")}],
)
def test_shapes_that_describe_no_process_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="out of range"):
        Arrivals(**settings).validate()  # pyright: ignore[reportArgumentType]
