"""Faults and attacks, what must hold under each, and the tests that show it.

    python -m tests.attacks                      runs them, prints the table
    python -m tests.attacks docs/security.md     and writes it there

A row holds if every test of it passed and none was skipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
MARKS = "<!-- attacks: written by python -m tests.attacks -->\n", "<!-- end of attacks -->\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """One row.

    Attributes:
        what: is done to the server.
        holds: in spite of it.
        tests: files, or node ids, below tests/.
    """

    what: str
    holds: str
    tests: tuple[str, ...]


FAULTS = (
    Attack(
        "the engine raises, exits or hangs under streams",
        "every stream ends with an error; restarted with its adapters; tokens as before",
        ("chaos/test_supervision.py",),
    ),
    Attack(
        "SIGKILL of the engine under 32 streams",
        "32 error events within 1 s, /ready 503, serving again within 10 s",
        ("chaos/test_engine_death.py",),
    ),
    Attack(
        "the folder of the engine's sockets is cleaned away, and the engine killed",
        "requests before it are answered; another engine, in another folder",
        ("chaos/test_engine_death.py::test_killed_after_its_sockets_were_cleaned_away",),
    ),
    Attack(
        "SIGTERM under streams; a second one; no time to drain",
        "no stream cut short; 503 with Retry-After for new ones; else finish_reason abort",
        ("chaos/test_drain.py",),
    ),
    Attack(
        "the configuration changes under streams, or is invalid",
        "nothing fails; all of it or nothing",
        ("chaos/test_reload.py",),
    ),
    Attack(
        "the wall clock jumps by a day",
        "quotas, requests in flight and the ledger's days hold",
        ("server/api/test_clock_jumps.py",),
    ),
    Attack("SIGKILL of the front end", "no process left after 5 s", ("chaos/test_api_death.py",)),
    Attack(
        "a hundred clients leave at random tokens, streaming or not",
        "KV blocks and adapter pins return to zero",
        ("chaos/test_disconnects.py",),
    ),
    Attack(
        "more requests than the queue holds; deadlines pass in it",
        "503 with Retry-After at once; 504 at the deadline; probes answer",
        ("chaos/test_overload.py", "server/api/test_admission.py"),
    ),
    Attack(
        "OpenAI's client meets a restart, and a full queue",
        "it recovers by itself, by Retry-After",
        ("chaos/test_openai_retries.py",
         "chaos/test_overload.py::test_openais_client_gets_through_a_full_queue_by_itself"),
    ),
    Attack(
        "one of two replicas is killed under load; clients leave; a stranger calls the cluster",
        "no whole answer lost, streams end with an error, a new replica; its work ends; refused",
        ("e2e/test_ray.py", "server/scaleout/test_relay.py"),
    ),
    Attack(
        "a scorer's process is killed",
        "503 for who waits, started again",
        ("server/scorer/test_link.py",),
    ),
    Attack(
        "seeded sampling, and a restart between",
        "the same tokens",
        ("chaos/test_engine_death.py::test_a_seed_means_the_same_tokens_after_a_restart",),
    ),
    Attack(
        "the KV cache runs out: preemption; chunked prompts; cached prefixes; other traffic",
        "the greedy answer of a request alone",
        ("e2e/test_batch_invariance.py", "e2e/test_mixed_batch.py", "e2e/test_needles.py"),
    ),
    Attack(
        "an adapter is damaged: truncated, NaN, wrong shape, missing key, another base",
        "4xx that names it; nothing of it stays; others' answers unchanged",
        ("e2e/test_hostile_adapters.py", "adapters/test_store.py"),
    ),
    Attack(
        "an adapter is loaded, replaced or unloaded under streams",
        "streams finish with what they began with; never the base by mistake",
        ("e2e/test_adapter_lifecycle.py",),
    ),
    Attack(
        "packets of one byte, stalls, resets, half-closed sockets",
        "answers unchanged, or nothing held",
        ("chaos/test_network.py",),
    ),
    Attack(
        "half a header, a header that trickles, a client that never reads",
        "408, or the connection ends; slow readers get everything",
        ("server/test_http_protocol.py",),
    ),
    Attack(
        "three minutes of streams, slow readers, vanishing clients, nonsense, loads and unloads",
        "no 5xx, no wrong answer; memory, files, threads, blocks and pins as before",
        ("chaos/test_soak.py",),
    ),
    Attack(
        "the soak's control: a process that does leak",
        "is found out",
        ("bench/test_soak.py",),
    ),
    Attack(
        "the database: kill -9 of PostgreSQL, damaged pages, locked, read-only",
        "tenants and keys as they were read last; usage waits and is carried over",
        ("server/tenancy/test_database_faults.py",),
    ),
    Attack(
        "kill -9 of the server, full disk, damaged journal",
        "every accepted request counts once; serving goes on, or 503 by name",
        ("server/tenancy/test_ledger.py", "server/tenancy/test_administration.py",
         "chaos/test_disk_full.py"),
    ),
)  # fmt: skip

ATTACKS = (
    Attack(
        "10,000 malformed requests beside a stream",
        "4xx each, no memory, the stream goes on",
        ("chaos/test_hostile_http.py::test_ten_thousand_malformed_requests",),
    ),
    Attack(
        "headers of megabytes, bodies of a gigabyte, 10,000 brackets, n = 10⁹, TLS on the port",
        "431, 413, 400; at most 20 MiB of memory",
        ("chaos/test_hostile_http.py::test_one_of_its_kind", "server/api/test_json_body.py"),
    ),
    Attack(
        "a million mistakes in a body; stop strings, prompts, tools, log-probabilities in bulk",
        "one is described; built once, or in threads: streams beside them go on",
        ("server/api/test_costly_requests.py",),
    ),
    Attack(
        "random requests out of the OpenAPI document",
        "no 5xx, every answer as documented",
        ("server/api/test_fuzz.py", "server/api/test_bad_requests.py"),
    ),
    Attack(
        "random damage to adapters of every kind",
        "refused by name or sound; no crash, no hang",
        ("adapters/test_fuzz.py", "kinds/test_fuzz.py", "kinds/test_huge_numbers.py"),
    ),
    Attack(
        "safetensors headers that lie about sizes, shapes and offsets",
        "refused before anything is allocated",
        ("adapters/test_tensor_file.py",),
    ),
    Attack(
        "pickles, code in repositories, foreign fields in config.json",
        "never read, never run",
        ("test_repository.py", "server/models/test_config.py", "server/sources/test_adapter.py"),
    ),
    Attack(
        "paths and links out of the adapter roots; archives that climb; bombs",
        "403 or 404, nothing written",
        ("server/sources/test_archive.py", "server/sources/test_adapter.py",
         "server/api/test_tenant_view.py"),
    ),
    Attack(
        "URLs into the server's own network, by name, redirect or a second DNS answer",
        "not fetched",
        ("server/sources/test_web.py", "server/sources/test_remote.py"),
    ),
    Attack(
        "templates that loop, print without end or reach for Python's insides",
        "stopped; nothing reached",
        ("server/pipeline/test_template.py",),
    ),
    Attack(
        "grammar and regex bombs",
        "compiled or refused in time, in a process of their own",
        ("server/pipeline/test_constraints.py", "server/pipeline/test_grammar_checker.py",
         "server/engine/test_grammar.py"),
    ),
    Attack(
        "answers made to break the tool parsers",
        "linear time, no eval, no deep stack",
        ("server/pipeline/tools/test_tool_parsers.py",),
    ),
    Attack(
        "damaged, huge, encrypted pictures and PDFs; documents that hang or eat memory",
        "read in confined processes; one request fails, by name",
        ("server/pipeline/documents/ocr", "server/api/documents/test_bad_input.py"),
    ),
    Attack(
        "every route without a key, with a wrong one, without its scope",
        "401 or 403; only /health, /ready and their like are open",
        ("server/api/test_auth.py", "server/api/test_tenants.py"),
    ),
    Attack(
        "another tenant's adapters, spelt in every way",
        "404, as what does not exist",
        ("server/api/test_tenant_view.py",),
    ),
    Attack(
        "a flood of prompts beside another tenant: its turns, its queue, its cached blocks",
        "turns by weight, the other's blocks stay, its cached prompts take what uncached ones take",
        ("server/engine/test_prefix_cache.py", "server/engine/test_scheduler_fairness.py",
         "server/api/test_admission.py"),
    ),
    Attack(
        "prompts, answers and keys with words to look for; names and headers with line breaks",
        "in no log line, no span, no error of the server; no line is forged",
        ("server/telemetry/test_logging.py", "server/telemetry/test_tracing.py"),
    ),
    Attack(
        "10,000 names of adapters and tenants",
        "no more series in /metrics than the budget",
        ("server/telemetry/test_usage.py", "server/api/test_tenant_metrics.py"),
    ),
    Attack(
        "keys in the database, or guessed by time",
        "hashes only, found by their hash",
        ("server/tenancy/test_administration.py",),
    ),
    Attack(
        "many requests at once against one quota",
        "no overshoot: tokens are reserved",
        ("server/tenancy/test_quotas.py",),
    ),
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """Of one test: "" where it passed, and what it measured."""

    wrong: str
    measured: dict[str, str]


def outcomes(junit: Path) -> dict[str, Outcome]:
    """Test id, as file::name -> outcome."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):
        failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        file = case.get("classname", "").replace(".", "/").removeprefix("tests/")
        found[f"{file}.py::{case.get('name')}"] = Outcome(", ".join(failed), properties)
    return found


def row(attack: Attack, found: dict[str, Outcome]) -> str:
    """A line of the table."""
    mine = {
        test: outcome
        for test, outcome in found.items()
        for wanted in attack.tests
        if test == wanted or re.match(re.escape(wanted) + r"(::|\[|/)", test)
    }
    wrong = [f"{test} {outcome.wrong}" for test, outcome in mine.items() if outcome.wrong]
    measured = {k: v for outcome in mine.values() for k, v in outcome.measured.items()}
    tests = "1 test" if len(mine) == 1 else f"{len(mine)} tests"
    said = f"holds ({tests})" if mine and not wrong else "**FAILED**: " + "; ".join(wrong)
    if measured and not wrong:
        said += "; " + ", ".join(f"{name} {value}" for name, value in measured.items())
    return f"| {attack.what} | {attack.holds} | {said} |"


def table(found: dict[str, Outcome]) -> str:
    """Both parts as Markdown."""
    lines = []
    for title, attacks in (("fault", FAULTS), ("attack", ATTACKS)):
        lines += ["", f"| {title} | what must hold | outcome |", "|---|---|---|"]
        lines += [row(attack, found) for attack in attacks]
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    """Run every test of the table, print it, and write it where the command line says."""
    tests = sorted({f"tests/{test}" for attack in FAULTS + ATTACKS for test in attack.tests})
    with TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junit-xml={junit}", *tests],
            cwd=ROOT,
            check=False,
        )
        text = table(outcomes(junit))
    print(text)
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        before, rest = page.read_text().split(MARKS[0])
        page.write_text(before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1])
    raise SystemExit(run.returncode)


if __name__ == "__main__":
    main()
