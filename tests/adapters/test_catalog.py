from __future__ import annotations

import subprocess
import sys

import pytest

from turret_adapters.catalog import AdapterRecord, Catalog, name_problem, parse_digest


def record(name: str, digest: str) -> AdapterRecord:
    return AdapterRecord(
        name=name,
        digest=digest,
        path=f"/adapters/{name}",
        kind="lora",
        rank=8,
        targets=("q_proj",),
        num_layers={"": 2},
        num_parameters=1,
        num_bytes=2,
        base_model=None,
        loaded_at=0.0,
    )


@pytest.mark.parametrize("name", ["sql", "fr-law_v2.1", "日本語", "é" * 128, "a@b#c"])
def test_allowed_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a,b",
        "a+b",
        "a:1",
        "a/b",
        "a\\b",
        "a b",
        "a\nb",
        "a\x00",
        "a\x7f",
        "x" * 129,
        "\ud800",
    ],
)
def test_forbidden_names(name: str) -> None:
    assert name_problem(name)


def test_replacing_returns_the_old_record() -> None:
    catalog = Catalog()
    assert catalog.put(record("sql", "d1")) is None
    old = catalog.put(record("sql", "d2"))
    assert old is not None
    assert old.digest == "d1"
    assert [r.digest for r in catalog.records()] == ["d2"]
    assert not catalog.is_referenced("d1")


def test_a_digest_lives_while_any_name_has_it() -> None:
    catalog = Catalog()
    catalog.put(record("a", "d"))
    catalog.put(record("b", "d"))
    catalog.remove("a")
    assert catalog.is_referenced("d")
    catalog.remove("b")
    assert not catalog.is_referenced("d")
    assert catalog.remove("b") is None


def test_a_digest_lives_while_a_request_uses_it() -> None:
    catalog = Catalog()
    catalog.put(record("a", "d"))
    catalog.acquire(["d"])
    catalog.acquire(["d"])
    catalog.remove("a")
    assert catalog.release(["d"]) == []
    assert catalog.is_referenced("d")
    assert catalog.release(["d"]) == ["d"]
    assert not catalog.is_referenced("d")


def test_release_frees_nothing_that_still_has_a_name() -> None:
    catalog = Catalog()
    catalog.put(record("a", "d"))
    catalog.acquire(["d"])
    assert catalog.release(["d"]) == []


def test_the_catalog_imports_no_torch() -> None:
    code = "import sys, turret_adapters.catalog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_digests_as_people_write_them() -> None:
    digest = "0123456789abcdef" * 4
    assert parse_digest(digest) == parse_digest(f"sha256:{digest.upper()}") == digest
    for text in ("", digest[:-1], f"{digest}0", f"sha512:{digest}", f"{digest}\n"):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            parse_digest(text)
