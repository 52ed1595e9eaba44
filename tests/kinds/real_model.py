"""Every kind on the real model, in one mixed batch, against its own library.

    python -m tests.kinds.real_model docs/kinds.md

writes the table of what was measured into the file; `test_real_model.py` checks the same numbers.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from tests.kinds.case import Case, Reference
from tests.kinds.lab import CASES, Lab, base_reference
from torch import Tensor

from turret_server.demo import demo_model
from turret_server.engine.messages import AdapterUse
from turret_server.pipeline.tokenizer import Tokenizer

PROMPT = "The lighthouse keeper climbed the stairs, counted them aloud, and at the top he"
NEW_TOKENS = 6
_BEGIN, _END = "<!-- parity: begin -->", "<!-- parity: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """What one case gave.

    Attributes:
        case: its name; "base" for the row without an adapter.
        kind: as the server recognised it.
        error: largest difference of a log-probability, over all positions, prompt and output.
        same_tokens: the greedy tokens are the reference's.
        effect: largest difference between the reference and the base, for scale.
    """

    case: str
    kind: str
    error: float
    same_tokens: bool
    effect: float


@dataclass(frozen=True, slots=True)
class Expected:
    """The reference's greedy answer: all tokens, and log-probabilities [T - 1, vocab]."""

    tokens: list[int]
    logprobs: Tensor


def usable(case: Case) -> bool:
    """Does the case make sense on a base with a tied head and no biases?"""
    return case.on_real_model and bool({"llama", "tied"} & set(case.bases))


def one_per_kind() -> list[Case]:
    """The first usable case of every kind: all of them take a quarter of an hour."""
    found: dict[str, Case] = {}
    for case in CASES:
        if usable(case):
            found.setdefault(case.kind, case)
    return list(found.values())


def greedy(reference: Reference, prompt: list[int]) -> Expected:
    """The reference's own answer, and how likely it thinks every token of it is."""
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        tokens.append(int(reference(torch.tensor(tokens))[-1].argmax()))
    return Expected(tokens, reference(torch.tensor(tokens[:-1])).log_softmax(-1))


def measure(folder: Path, cases: list[Case]) -> list[Row]:
    """Make every adapter in `folder`, serve all of them and the base at once, and compare."""
    model_folder = demo_model(progress=False)
    lab = Lab(model_folder, "real", max_resident_adapters=len(cases), adapter_rank_rows=8192)
    try:
        prompt = Tokenizer.load(model_folder).encode(PROMPT)
        base = greedy(base_reference(lab.model()), prompt)
        expected, kinds, requests = {"base": base}, {"base": ""}, [lab.ask(prompt, **_ANSWER)]
        names = ["base"]
        failed: list[Row] = []
        for case in cases:
            try:
                reference = case.make(folder / case.name, lab.model())
                expected[case.name] = greedy(reference, prompt)
                del reference
                loaded = lab.load(folder / case.name)
            except Exception as error:  # the others are still to be compared
                failed.append(Row(case.name, f"{type(error).__name__}: {error}", inf, False, 0.0))
                continue
            finally:
                gc.collect()
            kinds[case.name] = loaded.kind
            requests.append(lab.ask(prompt, AdapterUse(loaded.digest), **_ANSWER))
            names.append(case.name)
        answers = lab.run(requests)
    finally:
        lab.close()
    rows = []
    for name, answer in zip(names, answers, strict=True):
        want = expected[name]
        errors = [
            abs(float(row[token]) - value)
            for row, entry in zip(want.logprobs, answer.entries, strict=True)
            for token, value in [(entry.token, entry.logprob), *entry.top]
        ]
        shared = len(prompt) - 1
        effect = (want.logprobs[:shared] - base.logprobs[:shared]).abs().max()
        same = answer.prompt + answer.tokens == want.tokens
        rows.append(Row(name, kinds[name], max(errors), same, float(effect)))
    return rows + failed


_ANSWER = {"max_tokens": NEW_TOKENS}


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| case | kind | largest error | greedy tokens | effect |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        same = "the same" if row.same_tokens else "**differ**"
        lines.append(f"| {row.case} | {row.kind} | {row.error:.1e} | {same} | {row.effect:.2g} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--all", action="store_true", help="every case, not one of each kind")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in CASES if usable(case)] if args.all else one_per_kind()
        found = table(measure(Path(folder), cases))
    text = args.file.read_text()
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    args.file.write_text(f"{before}{_BEGIN}\n{found}\n{_END}{after}")
    print(found)


if __name__ == "__main__":
    main()
