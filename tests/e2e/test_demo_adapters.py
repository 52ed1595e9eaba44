"""The shipped adapters, each at its task, all in one batch; the README's commands as written."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import turret_adapters

pytestmark = pytest.mark.e2e

DEMO = Path(turret_adapters.__file__).parent / "demo"
EXAMPLES = json.loads((DEMO / "examples.json").read_text())
README = (Path(__file__).parents[2] / "README.md").read_text()


async def test_each_does_what_the_base_cannot(ask, base):
    jobs = [(m, name) for name in EXAMPLES for m in (name, base)]
    answers = await asyncio.gather(
        *(ask(model, EXAMPLES[name]["prompt"], max_tokens=80) for model, name in jobs)
    )
    for (model, name), answer in zip(jobs, answers, strict=True):
        is_right = answer.choices[0].message.content.strip() == EXAMPLES[name]["answer"]
        assert is_right == (model == name), (model, name, answer.choices[0].message.content)


def blocks(language, holding):
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if holding in block]


def test_the_curl_lines_of_the_readme(server):
    (block,) = blocks("bash", "curl -s")
    commands = [f"curl{part}" for part in re.split(r"^curl", block, flags=re.MULTILINE)[1:]]
    contents = []
    for command in commands:
        command = command.replace("http://127.0.0.1:8000", server.url)
        run = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True)
        contents.append(json.loads(run.stdout)["choices"][0]["message"]["content"])
    order, date = contents
    order = json.loads(order)
    assert (order["item"], order["quantity"], order["city"]) == ("kimono", 16, "Bangalore")
    assert date == "1963-05-03"


def test_the_python_lines_of_the_readme(server, base):
    (block,) = blocks("python", "OpenAI(")
    program = block.replace("http://127.0.0.1:8000", server.url)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    text, sql = run.stdout.split("\nsql → ")
    assert text.startswith(f"{base} → ")
    assert sql.strip() == EXAMPLES["sql"]["answer"]
