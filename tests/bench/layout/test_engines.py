"""What the comparison comes to, on a page of every kind in every variant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import pytest
from bench.layout import __main__ as bench_layout
from bench.layout.engines import Engine, engines
from bench.layout.metrics import Scores, score
from bench.layout.samples import make_samples
from bench.layout.sheet import Sample

OURS, LATIN_WORDS, LATIN_LINES, PLAIN = engines()[:4]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(make_samples(1))


def scores_of(engine: Engine, samples: list[Sample]) -> list[Scores]:
    return [score(sample, engine.read(engine.prepare(sample.page))) for sample in samples]


def f1(scores: list[Scores]) -> float:
    return mean(score.adjacency for score in scores if score.adjacency is not None)


def test_ours_loses_no_word_and_keeps_cells_and_order(samples: list[Sample]) -> None:
    scores = scores_of(OURS, samples)

    assert [(s.glued, s.lost, s.invented) for s in scores] == [(0, 0, 0)] * len(samples)
    assert f1(scores) > 0.985
    assert mean(score.order for score in scores if score.order is not None) > 0.985


def test_latin_as_published_glues_words_and_plain_has_no_cells(samples: list[Sample]) -> None:
    words, lines = scores_of(LATIN_WORDS, samples), scores_of(LATIN_LINES, samples)

    assert sum(score.glued for score in words) > 0.2 * sum(score.words for score in words)
    assert f1(words) < f1(lines) < 0.7
    assert f1(scores_of(PLAIN, samples)) == 0.0


def test_the_command_writes_json_and_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_layout, "engines", lambda: [OURS])
    monkeypatch.setattr(
        sys, "argv", ["bench.layout", "--count", "1", "--output", str(tmp_path / "out.json")]
    )

    bench_layout.main()

    assert "| Turret |" in capsys.readouterr().out
    assert "| Turret |" in (tmp_path / "out.md").read_text()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["engines"]["Turret"]["all"]["lost_per_1000_words"] == 0
    assert found["settings"]["count"] == 1
