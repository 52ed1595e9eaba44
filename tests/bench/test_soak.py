"""The soak's judgement: what leaks is found, what does not is not accused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest
from bench.soak.watch import Sample, growth_mib_per_min, leaks, look, watch

QUIET = Sample(0, 1000.0, 50, 15)
NOTHING = {"turret_num_requests_running": 0.0}


def samples(mib_per_min=0.0, files=50, threads=15, seconds=600):
    """A minute of filling caches, then a steady slope."""
    return [
        Sample(t, 1000 + 50 * min(t / 60, 1) + mib_per_min * t / 60, files, threads)
        for t in range(0, seconds + 1, 2)
    ]


def test_a_full_cache_is_no_leak():
    assert leaks(samples(), QUIET, NOTHING) == []


def test_a_slope_is():
    assert growth_mib_per_min(samples(5.0)) == pytest.approx(5.0)
    assert leaks(samples(5.0), QUIET, NOTHING) == ["memory grows by 5.0 MiB a minute"]


def test_files_threads_and_blocks():
    found = leaks(samples(files=90, threads=40), QUIET, {"turret_kv_cache_usage_perc": 0.1})
    assert found == [
        "files: 90, 50 before",
        "threads: 40, 15 before",
        "turret_kv_cache_usage_perc is 0.1",
    ]


@pytest.mark.parametrize("leaking", [True, False])
async def test_a_process_that_leaks_is_found_out(leaking):
    """The control: the soak must fail where it should."""
    program = f"""
        import time
        print("up", flush=True)
        kept = []
        for _ in range(1000):
            if {leaking}:
                kept.append((bytearray(b"x" * 4_000_000), open("/dev/null")))
            time.sleep(0.02)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        quiet = look(process.pid, time.monotonic())
        found = await watch(process.pid, 0.05, time.monotonic() + 1.5)
    finally:
        process.kill()
        process.communicate()
    assert bool(leaks(found, quiet, {})) == leaking
    if leaking:
        memory, files = leaks(found, quiet, {})
        assert memory.startswith("memory grows")
        assert files.startswith("files")
