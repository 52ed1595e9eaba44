"""Traffic of every kind for three minutes: nothing leaks, fails without a reason, or is wrong.

TURRET_SOAK_S=1800 is the nightly form.
"""

from __future__ import annotations

import os

import pytest
from bench.soak.__main__ import parse, run

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("TURRET_SOAK_S", "180"))


def test_it_stays_as_it_was(demo_folder, tmp_path_factory, record_property):
    folder = tmp_path_factory.mktemp("soak")
    flags = ["--seconds", str(SECONDS), "--folder", str(folder), "--places", "8"]
    report = run(parse([str(demo_folder), *flags]))
    for name in ("statuses", "answers_checked", "adapters_churned", "memory_growth_mib_per_min"):
        record_property(name, report[name])
    assert report["unexplained"] == []
    assert report["leaks"] == []
    assert report["answers_checked"] > 20
    assert report["adapters_churned"] > 10
    assert report["tenants_served"] == 10
