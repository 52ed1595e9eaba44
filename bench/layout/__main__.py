"""How well pages survive being made into text, by every engine that is at hand.

    python -m bench.layout
    python -m bench.layout --docvqa FOLDER --url http://127.0.0.1:8000 --model NAME

The first draws pages whose cells and reading order are known (nothing is downloaded), lays them
out with Turret, with LATIN as published, as plain words, and with `pdftotext -layout` and
pdfplumber where they are installed (they get the same words and boxes as a PDF), and writes a table
and all numbers. Engines that live in this process are timed by its CPU time, `pdftotext` by the
clock and with the start of its process.

The second asks a running server the questions of a set in DocVQA's format and reports ANLS.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bench.layout.docvqa import Server, evaluate
from bench.layout.engines import engines
from bench.layout.metrics import score
from bench.layout.report import Row, markdown, results
from bench.layout.samples import make_samples

from turret_server.loadtest.environment import machine

_RESULTS = Path(__file__).parents[1] / "results"


def compare(count: int, seed: int) -> list[Row]:
    """Every page in every engine."""
    samples = list(make_samples(count, seed))
    rows = []
    for engine in engines():
        clock = time.perf_counter if engine.external else time.process_time
        engine.read(engine.prepare(samples[0].page))  # imports
        for sample in samples:
            source = engine.prepare(sample.page)
            start = clock()
            text = engine.read(source)
            rows.append(Row(engine.name, sample, score(sample, text), clock() - start))
    return rows


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=8, help="pages of a kind, each in 3 variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_RESULTS / "layout.json")
    parser.add_argument("--docvqa", type=Path, help="folder of a set in DocVQA's format")
    parser.add_argument("--url", help="of a running server, for --docvqa")
    parser.add_argument("--model", help="for --docvqa")
    parser.add_argument("--mode", default="turret", help="layout mode, for --docvqa")
    parser.add_argument("--api-key", help="of the server, for --docvqa")
    parser.add_argument("--workers", type=int, default=4, help="requests at once, for --docvqa")
    parser.add_argument("--limit", type=int, help="ask only so many questions")
    args = parser.parse_args()
    if args.docvqa is not None:
        if not args.url or not args.model:
            parser.error("--docvqa needs --url and --model")
        server = Server(args.url, args.model, args.mode, args.api_key, args.workers)
        found = evaluate(args.docvqa, server, args.limit)
        print(json.dumps(found, indent=1))
        return
    rows = compare(args.count, args.seed)
    text = markdown(rows)
    print(text)
    settings = {"count": args.count, "seed": args.seed, "machine": machine()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results(rows, settings), indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
