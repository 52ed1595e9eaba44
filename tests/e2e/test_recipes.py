"""Named recipes of a turret.toml, compressed adapters, and the commands that need the base."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.conftest import TURRET

import turret_adapters

pytestmark = pytest.mark.e2e

DEMO = Path(turret_adapters.__file__).parent / "demo"
CONFIG = """
[recipes]
plain = "sql:0.5+dates"

[recipes.soft]
adapters = [{ name = "sql", weight = { q_proj = 0.5, v_proj = 0.5 } }, { name = "dates" }]

[recipes.exact]
method = "sum"
sources = [{ name = "sql", weight = 0.5 }, "dates"]

[recipes.merged]
method = "svd"
sources = ["sql", "dates"]
rank = 4
"""


def answer(url: str, model: str, **fields: Any) -> Any:
    body = {"model": model, "prompt": "Table a(b)\nHow many", "temperature": 0, "max_tokens": 8}
    body |= {"logprobs": 3, **fields}
    return httpx2.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status().json()


def logprobs(url: str, model: str) -> list[float]:
    return answer(url, model)["choices"][0]["logprobs"]["token_logprobs"]


def test_recipes_of_the_configuration_are_models(
    serve: Callable[..., Any], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    config = tmp_path / "turret.toml"
    config.write_text(CONFIG)
    with serve(f"--config={config}", "--dtype=float32") as server:
        cards = {c["id"]: c for c in httpx2.get(f"{server.url}/v1/models").json()["data"]}
        assert cards["plain"]["root"] == "sql:0.5+dates"
        assert cards["soft"]["kind"] == "recipe"
        assert (cards["exact"]["kind"], cards["exact"]["root"]) == (
            "derived",
            "sum(sql:0.5, dates)",
        )
        assert cards["merged"]["root"] == "svd(sql, dates, rank=4)"
        assert len({c["parent"] for c in cards.values()} - {None}) == 1
        assert any("its rank drops" in line for line in server.lines)

        # The sum is exact: it answers as the stack does. Sums in another order: 1e-4 at most.
        stack = logprobs(server.url, "plain")
        assert logprobs(server.url, "exact") == pytest.approx(stack, abs=1e-3)
        assert logprobs(server.url, "soft") != pytest.approx(stack, abs=1e-3)
        merged = logprobs(server.url, "merged")

        # A new engine derives them again.
        (engine,) = server.engines()
        engine.kill()
        wait_until(lambda: httpx2.get(f"{server.url}/ready").status_code != 200, 20, "it is gone")
        wait_until(lambda: httpx2.get(f"{server.url}/ready").status_code == 200, 60, "it is back")
        assert logprobs(server.url, "merged") == pytest.approx(merged, abs=1e-4)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ('x = "sql:17"', "out of range"),
        ('[recipes.x]\nmethod = "ties"\nsources = ["sql"]', "needs a density"),
        ('[recipes.x]\nmethod = "sum"\nsources = ["nope"]', "nope"),
        ('[recipes.x]\nmethod = "peft-linear"\nsources = ["sql", "order-json"]', "ranks"),
    ],
    ids=["weight", "parameter", "source", "method"],
)
def test_a_recipe_that_cannot_be_served_is_named(tmp_path: Path, recipe: str, why: str) -> None:
    config = tmp_path / "turret.toml"
    config.write_text(f"[recipes]\n{recipe}\n")
    done = subprocess.run(
        [TURRET, "serve", "demo", "--port", "0", f"--config={config}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "error: the recipe 'x' cannot be served" in done.stderr
    assert why in done.stderr


def test_a_compressed_adapter_is_verified_and_compared(tmp_path: Path) -> None:
    target = tmp_path / "small"

    def turret(*args: str) -> Any:
        done = subprocess.run(
            [TURRET, "adapters", *args], capture_output=True, text=True, timeout=300, check=True
        )
        return json.loads(done.stdout)

    report = turret("compress", str(DEMO / "sql"), str(target), "--base", "demo", "--json")
    assert report["ratio"] > 8
    # It keeps something of the adapter: it is nearer to it than the base is.
    assert 0 < report["output_drift"] < report["adapter_effect"]
    facts = turret("verify", str(target), "--base", "demo", "--json")
    assert (facts["kind"], facts["rank"]) == ("compeft", 3)
    assert len(facts["digest"]) == 64
