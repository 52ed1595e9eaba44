"""Sets in DocVQA's format: questions about pages, and the pages as Microsoft's Read saw them.

A folder holds the questions (a JSON file with `data`: `question`, `answers`,
`ucsf_document_id`, `ucsf_document_page_no`) and `ocr_results/<document>_<page>.json`.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.layout.anls import anls, similarity

_TIMEOUT_S = 600.0


def questions(folder: Path) -> list[dict[str, Any]]:
    """All that have answers and whose page is there.

    Raises:
        SystemExit: there are none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text()).get("data", [])
        for item in data:
            page = f"{item['ucsf_document_id']}_{item['ucsf_document_page_no']}.json"
            ocr = folder / "ocr_results" / page
            if item.get("answers") and ocr.exists():
                found.append({**item, "ocr": ocr})
    if not found:
        raise SystemExit(f"{folder}: no question with answers and a page in ocr_results/")
    return found


def body(question: str, ocr: Any, model: str, mode: str) -> dict[str, Any]:
    """The request that asks it."""
    document = {"data": ocr, "format": "docvqa"}
    content = [{"type": "document", "document": document}, {"type": "text", "text": question}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "layout": {"task": "docvqa", "mode": mode},
        "temperature": 0,
        "max_tokens": 100,
    }


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and how it is asked.

    Attributes:
        url: where it listens.
        model: which one answers.
        mode: of the layout.
        api_key: if it wants one.
        workers: requests at once.
    """

    url: str
    model: str
    mode: str = "turret"
    api_key: str | None = None
    workers: int = 4

    def ask(self, item: dict[str, Any]) -> str:
        """The answer to a question."""
        ocr = json.loads(item["ocr"].read_text())
        request = body(item["question"], ocr, self.model, self.mode)
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address = f"{self.url.rstrip('/')}/v1/chat/completions"
        call = urllib.request.Request(address, json.dumps(request).encode(), headers)
        with urllib.request.urlopen(call, timeout=_TIMEOUT_S) as reply:
            return json.load(reply)["choices"][0]["message"]["content"] or ""


def evaluate(folder: Path, server: Server, limit: int | None) -> dict[str, Any]:
    """Ask all questions and compare the answers; a question that fails has none."""
    failed: list[dict[str, str]] = []

    def answer(item: dict[str, Any]) -> tuple[str, list[str]]:
        try:
            return server.ask(item), item["answers"]
        except urllib.error.HTTPError as error:
            failed.append({"question": item["question"], "error": error.read().decode()[:300]})
            return "", item["answers"]

    with ThreadPoolExecutor(server.workers) as pool:
        answered = list(pool.map(answer, questions(folder)[:limit]))
    ranked = sorted(answered, key=lambda pair: similarity(*pair))
    return {
        "anls": round(anls(answered), 4),
        "questions": len(answered),
        "mode": server.mode,
        "failed": failed,
        "worst": [{"answer": answer, "right": right} for answer, right in ranked[:10]],
    }
