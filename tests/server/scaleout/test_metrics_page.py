"""One metrics page of many."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from turret_server.scaleout.metrics_page import merged


def series(page: bytes) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


async def test_every_series_is_there_for_every_replica(app):
    page = app.state.service.metrics.text(with_tenants=False)
    found = series(merged({"r1": page, "r2": page}))
    plain = series(page)
    assert len(found) == 2 * len(plain) > 100
    for key in plain:
        if "lora_requests_info" in key[0]:
            continue  # the value is a time
        for replica in ("r1", "r2"):
            labelled = (key[0], *sorted([*key[1:], ("replica", replica)]))
            assert found[labelled] == plain[key]


def test_a_metric_is_described_once():
    page = b"# HELP x A count.\n# TYPE x counter\nx_total 1.0\n"
    assert merged({"a": page, "b": page}) == (
        b'# HELP x A count.\n# TYPE x counter\nx_total{replica="a"} 1.0\nx_total{replica="b"} 1.0\n'
    )


def test_values_of_labels_may_hold_anything():
    page = b'x{name="a b{c}"} 1.0\n'
    assert merged({"r": b"# HELP x X\n" + page}).endswith(b'x{replica="r",name="a b{c}"} 1.0\n')


def test_no_replica():
    assert merged({}) == b""
