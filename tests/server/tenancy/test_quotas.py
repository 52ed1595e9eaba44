"""Quotas: a burst is served, the average holds, what was reserved and not used comes back."""

from contextlib import ExitStack

import pytest

from turret_server.errors import BadRequest
from turret_server.tenancy.principal import Quotas, Tenant
from turret_server.tenancy.quotas import Meter, Meters, QuotaExceeded


def tenant(**quotas):
    return Tenant(name="acme", quotas=Quotas(**quotas))


def reserve(meter, tenant, *, tokens=0, pages=0):
    """A request that is let in, and takes what it needs."""
    with ExitStack() as held:
        reservation = held.enter_context(meter.enter(tenant))
        reservation.take(tokens=tokens, pages=pages)
        held.pop_all()
    return reservation


def test_without_quotas_everything_is_admitted(clock):
    meter = Meter(clock)
    for _ in range(1000):
        reserve(meter, tenant(), tokens=10**9, pages=10**6)
    assert meter.headers() == {}


def test_a_minutes_worth_at_once_then_evenly(clock):
    meter, acme = Meter(clock), tenant(requests_per_minute=6)
    for _ in range(6):
        reserve(meter, acme, tokens=0)
    with pytest.raises(QuotaExceeded) as caught:
        reserve(meter, acme, tokens=0)
    assert caught.value.retry_after_s == pytest.approx(10)
    assert caught.value.status == 429
    clock.now += 9.9
    with pytest.raises(QuotaExceeded):
        reserve(meter, acme, tokens=0)
    clock.now += 0.2
    reserve(meter, acme, tokens=0)
    clock.now += 3600  # an hour of silence is worth one minute
    for _ in range(6):
        reserve(meter, acme, tokens=0)
    with pytest.raises(QuotaExceeded):
        reserve(meter, acme, tokens=0)


def test_many_requests_at_once_cannot_overshoot_the_tokens(clock):
    meter, acme = Meter(clock), tenant(tokens_per_minute=1000)
    held = [reserve(meter, acme, tokens=300) for _ in range(3)]
    with pytest.raises(QuotaExceeded, match=r"used its tokens.*100 of them are left"):
        reserve(meter, acme, tokens=300)
    for reservation in held:
        with reservation:
            reservation.used = 50
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "850"
    reserve(meter, acme, tokens=850)


def test_what_is_given_back_never_exceeds_the_limit(clock):
    meter, acme = Meter(clock), tenant(tokens_per_minute=100)
    with reserve(meter, acme, tokens=100):
        clock.now += 60
        meter.headers()
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "100"


def test_a_request_that_is_refused_for_its_tokens_counts_as_one_and_takes_no_more(clock):
    meter, acme = Meter(clock), tenant(requests_per_minute=10, tokens_per_minute=100)
    reserve(meter, acme, tokens=100)
    with pytest.raises(QuotaExceeded):
        reserve(meter, acme, tokens=1)
    headers = meter.headers()
    assert headers["x-ratelimit-remaining-requests"] == "8"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert meter.running == 1


def test_a_request_that_can_never_be_served_is_no_matter_of_waiting(clock):
    with pytest.raises(BadRequest, match="101 tokens") as caught:
        reserve(Meter(clock), tenant(tokens_per_minute=100), tokens=101)
    assert not isinstance(caught.value, QuotaExceeded)


def test_a_quota_of_zero_refuses_without_end(clock):
    with pytest.raises(QuotaExceeded) as caught:
        reserve(Meter(clock), tenant(requests_per_minute=0), tokens=1)
    assert caught.value.retry_after_s == 3600


def test_requests_at_once(clock):
    meter, acme = Meter(clock), tenant(concurrent_requests=2)
    held = [reserve(meter, acme, tokens=1) for _ in range(2)]
    with pytest.raises(QuotaExceeded, match="at once"):
        reserve(meter, acme, tokens=1)
    for reservation in held:
        with reservation:
            pass
    assert meter.running == 0
    reserve(meter, acme, tokens=1)


def test_pages(clock):
    meter, acme = Meter(clock), tenant(pages_per_minute=10)
    reserve(meter, acme, tokens=1, pages=10)
    with pytest.raises(QuotaExceeded, match="pages"):
        reserve(meter, acme, tokens=1, pages=1)
    reserve(meter, acme, tokens=1)


def test_a_check_takes_nothing(clock):
    meter, acme = Meter(clock), tenant(pages_per_minute=10, tokens_per_minute=50)
    reservation = reserve(meter, acme, tokens=20)
    for _ in range(3):
        reservation.check(tokens=30, pages=10)
    with pytest.raises(QuotaExceeded):
        reservation.check(tokens=31)
    reserve(meter, acme, tokens=30, pages=10)


def test_openais_headers(clock):
    meter, acme = Meter(clock), tenant(requests_per_minute=60, tokens_per_minute=600)
    reserve(meter, acme, tokens=150)
    assert meter.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15.000s",
    }


def test_a_changed_quota_counts_from_the_next_request_on(clock):
    meter = Meter(clock)
    reserve(meter, tenant(requests_per_minute=1, tokens_per_minute=100), tokens=60)
    with pytest.raises(QuotaExceeded):
        reserve(meter, tenant(requests_per_minute=1, tokens_per_minute=100), tokens=1)
    # What did not change goes on from where it was.
    with pytest.raises(QuotaExceeded, match="tokens"):
        reserve(meter, tenant(requests_per_minute=5, tokens_per_minute=100), tokens=50)
    reserve(meter, tenant(requests_per_minute=5), tokens=50)


def test_each_tenant_has_a_meter_of_its_own(clock):
    meters, quotas = Meters(clock), Quotas(requests_per_minute=1)
    acme, other = Tenant(name="acme", quotas=quotas), Tenant(name="other", quotas=quotas)
    meters.of(acme).enter(acme)
    meters.of(other).enter(other)
    with pytest.raises(QuotaExceeded):
        meters.of(acme).enter(acme)


def test_tokens_that_were_reserved_before_a_quota_do_not_fill_it(clock):
    meter, quota = Meter(clock), tenant(tokens_per_minute=1000)
    before = reserve(meter, tenant(), tokens=10**6)
    reserve(meter, quota, tokens=1000)
    with before:
        before.used = 10
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert meter.running == 1


def test_a_request_from_before_a_change_does_not_bring_the_old_quotas_back(clock):
    """Each such request, and the next one, made the bucket whole again."""
    meter, new = Meter(clock), tenant(tokens_per_minute=1000)
    with meter.enter(tenant(tokens_per_minute=5000)) as before:
        reserve(meter, new, tokens=900)
        with pytest.raises(QuotaExceeded, match="100 of them are left"):
            before.take(tokens=200)
        with pytest.raises(QuotaExceeded, match="100 of them are left"):
            reserve(meter, new, tokens=200)
