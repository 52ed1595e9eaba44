"""The pages that are drawn."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from bench.layout.engines import joined
from bench.layout.metrics import score
from bench.layout.pdf import to_pdf
from bench.layout.report import Row, markdown, results, worst
from bench.layout.samples import KINDS, VARIANTS, make_samples
from bench.layout.sheet import Sample

from turret_server.pipeline.documents.page import Page, Word, upright


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(make_samples(1))


def test_every_kind_in_every_variant_and_the_same_again(samples: list[Sample]) -> None:
    assert [(s.kind, s.variant) for s in samples] == [(k, v) for k in KINDS for v in VARIANTS]
    assert list(make_samples(1)) == samples
    assert list(make_samples(1, seed=1)) != samples


def test_words_stand_once_and_on_their_page(samples: list[Sample]) -> None:
    for sample in samples:
        texts = [word.text for word in sample.page.words]
        assert len(texts) == len(set(texts)), sample.name
        for word in sample.page.words:
            left, top, right, bottom = word.box
            assert -20 < left < right < sample.page.width + 20, sample.name
            assert -20 < top < bottom < sample.page.height + 20, sample.name


def test_the_truth_is_of_the_words(samples: list[Sample]) -> None:
    for sample in samples:
        texts = {word.text for word in sample.page.words}
        for line in (*sample.truth.cells, *sample.truth.order):
            assert texts.issuperset(line), sample.name
        for a, b, _ in sample.truth.relations:
            assert max(a, b) < len(sample.truth.cells), sample.name


def test_words_of_a_clean_page_do_not_overlap(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.variant != "clean":
            continue
        boxes = sorted(word.box for word in sample.page.words)
        for i, (left, top, right, bottom) in enumerate(boxes):
            for x0, y0, _, y1 in boxes[i + 1 :]:
                if x0 >= right:
                    break
                assert y0 >= bottom or y1 <= top, (sample.name, left, x0)


def test_joined_words_are_lines() -> None:
    words = [
        Word("two", upright(0, 0, 30, 10), line=0),
        Word("words", upright(35, 0, 80, 10), line=0),
        Word("far", upright(120, 0, 140, 10), line=0),
        Word("שני", upright(200, 20, 220, 30), line=1),
        Word("ימין", upright(170, 20, 195, 30), line=1),
    ]

    page = joined(Page(words, 300, 40))

    assert [(word.text, word.box) for word in page.words] == [
        ("two words", (0, 0, 80, 10)), ("far", (120, 0, 140, 10)),
        ("שני ימין", (170, 20, 220, 30)),
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
def test_pdftotext_reads_the_words_of_our_pdfs(samples: list[Sample], tmp_path: Path) -> None:
    for sample in samples:
        if sample.variant != "clean" or sample.kind == "Hebrew":
            continue
        (tmp_path / "page.pdf").write_bytes(to_pdf(sample.page))
        done = subprocess.run(
            ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, check=True
        )
        scores = score(sample, done.stdout.decode())
        assert (scores.glued, scores.lost, scores.invented) == (0, 0, 0), sample.name


def test_the_report_names_engines_and_worst_pages(samples: list[Sample]) -> None:
    rows = [
        Row(engine, sample, score(sample, text), 0.001)
        for engine, text in (("Turret", "nothing"), ("other", ""))
        for sample in samples
    ]

    assert "| Turret | 0.000 |" in markdown(rows)
    assert len(worst(rows, 3)) == 3
    found = results(rows, {"count": 1})
    assert found["engines"]["Turret"]["all"]["lost_per_1000_words"] == 1000
    assert found["engines"]["other"]["Hebrew"]["pages_per_second"] == pytest.approx(1000)
