"""What is particular to docTR, RapidOCR, PaddleOCR, DUE, and words and boxes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.page import Page, upright
from turret_server.pipeline.documents.readers import detect, read, read_value

POINTS = [[10, 20], [40, 20], [40, 28], [10, 28]]
QUAD = upright(10, 20, 40, 28)


def texts(pages: list[Page]) -> list[list[str]]:
    return [[word.text for word in page.words] for page in pages]


class TestDoctr:
    def test_four_corners_of_a_page_that_is_not_straight(self) -> None:
        geometry = [[0.1, 0.2], [0.4, 0.25], [0.39, 0.3], [0.09, 0.25]]
        word = {"value": "a", "confidence": 0.9, "geometry": geometry}
        page = {"page_idx": 0, "dimensions": [400, 600], "blocks": [{"lines": [{"words": [word]}]}]}

        for value in ({"pages": [page]}, page):
            (found,) = read_value(value)
            expected = [60, 80, 240, 100, 234, 120, 54, 100]
            assert found.words[0].quad == pytest.approx(expected)
            assert (found.width, found.height) == (600, 400)


class TestRapidocr:
    def test_the_pair_of_lines_and_times(self) -> None:
        value = [[[POINTS, "a line", "0.75"]], [0.1, 0.2, 0.3]]

        assert detect(json.dumps(value).encode()) == "rapidocr"
        (page,) = read_value(value)
        assert (page.words[0].quad, page.words[0].confidence) == (QUAD, 0.75)

    @pytest.mark.parametrize(
        "value",
        [[None, None], [None, [0.1]], {"boxes": None, "txts": None, "scores": None}, []],
    )
    def test_nothing_found(self, value: Any) -> None:
        assert texts(read_value(value, "rapidocr")) == [[]]

    def test_words_where_there_are_some(self) -> None:
        second = [[x + 100, y] for x, y in POINTS]
        value = {
            "boxes": [POINTS, second], "txts": ["a b", "c d"], "scores": [0.9, 0.8],
            "word_results": [[["a", 0.7, POINTS], ["b", 0.6, POINTS]], [["", 1.0, None]]],
        }  # fmt: skip

        (page,) = read_value(value)

        found = [(word.text, word.line, word.confidence) for word in page.words]
        assert found == [("a", 0, 0.7), ("b", 0, 0.6), ("c d", 1, 0.8)]

    def test_fields_of_different_lengths_are_counted(self) -> None:
        with pytest.raises(BadRequest, match="1 boxes, 2 txts, 2 scores"):
            read_value({"boxes": [POINTS], "txts": ["a", "b"], "scores": [0.1, 0.2]})


class TestPaddleocr:
    def test_pages_of_version_2_some_of_them_empty(self) -> None:
        value = [[[POINTS, ["a", 0.9]]], None, [[POINTS, ["b", 0.8]]]]

        assert detect(json.dumps(value).encode()) == "paddleocr"
        assert texts(read_value(value)) == [["a"], [], ["b"]]

    def test_lines_alone(self) -> None:
        value = [[POINTS, ["a", 0.9]], [POINTS, ["b", 0.8]]]

        assert detect(json.dumps(value).encode()) == "paddleocr"
        assert texts(read_value(value)) == [["a", "b"]]

    def test_version_3_wrapped_in_res_page_by_page(self) -> None:
        pages = [
            {"res": {"page_index": i, "rec_texts": [t], "rec_boxes": [[10, 20, 40, 28]]}}
            for i, t in enumerate("ab")
        ]

        found = read_value(pages)

        assert texts(found) == [["a"], ["b"]]
        assert [page.number for page in found] == [1, 2]
        assert found[0].words[0].quad == QUAD

    def test_pages_of_pp_structure(self) -> None:
        inner = {"rec_texts": ["a"], "rec_polys": [POINTS]}
        value = {"page_index": 2, "width": 600, "height": 400, "overall_ocr_res": inner}

        for whole in (value, {"res": value}, [value]):
            assert detect(json.dumps(whole).encode()) == "paddleocr"
            (page,) = read_value(whole)
            assert (page.number, page.width, page.height) == (3, 600, 400)
            assert page.words[0].quad == QUAD

    def test_words_of_version_3(self) -> None:
        value = {
            "rec_texts": ["a b"], "rec_scores": [0.9], "rec_polys": [POINTS],
            "text_word": [["a", " ", "b"]],
            "text_word_boxes": [[[10, 20, 20, 28], [20, 20, 30, 28], [30, 20, 40, 28]]],
        }  # fmt: skip

        (page,) = read_value(value)

        assert [(word.text, word.box) for word in page.words] == [
            ("a", (10, 20, 20, 28)), ("b", (30, 20, 40, 28)),
        ]  # fmt: skip


class TestDue:
    def test_pages_and_the_better_of_two_tools(self) -> None:
        def common(*tokens: str) -> Any:
            boxes = [[10, 20 + 800 * (i // 2), 40, 28 + 800 * (i // 2)] for i in range(len(tokens))]
            pages = {"structure_value": [[0, 2], [2, 3]]}
            pages["positions"] = [[0, 0, 600, 800], [0, 800, 600, 1600]]
            return {"tokens": list(tokens), "positions": boxes, "structures": {"pages": pages}}

        value = {
            "name": "x",
            "contents": [
                {"tool_name": "microsoft_cv", "common_format": common("a", "b", "c")},
                {"tool_name": "tesseract", "common_format": common("d", "e", "f")},
            ],
        }

        found = read_value(value)

        assert texts(found) == [["a", "b"], ["c"]]
        assert [page.words[0].quad for page in found] == [QUAD, QUAD]
        assert [page.height for page in found] == [800, 800]

    def test_the_name_of_the_published_schema(self) -> None:
        layer = {"tokens": ["a"], "positions": [[10, 20, 40, 28]]}

        assert texts(read_value({"contents": [{"tool_name": "djvu", "tokens_layer": layer}]})) == [
            ["a"]
        ]

    def test_ranges_beyond_the_tokens_are_named(self) -> None:
        lines = {"structure_value": [[0, 5]]}
        value = {"tokens": ["a"], "positions": [[0, 0, 1, 1]], "structures": {"lines": lines}}

        with pytest.raises(BadRequest, match="a line has the tokens 0 to 5 of 1"):
            read_value(value)

    def test_several_documents_are_one_too_many(self) -> None:
        line = b'{"contents": [{"tool_name": "djvu"}]}\n'

        with pytest.raises(BadRequest, match="trailing characters"):
            read(line + line)


class TestWords:
    @pytest.mark.parametrize(
        "box",
        [
            [10, 20, 40, 28],
            [40, 28, 10, 20],
            [10, 20, 40, 20, 40, 28, 10, 28],
            [10, 20, 10, 28, 40, 28, 40, 20],
            POINTS,
            [[10, 20], [40, 28]],
            {"left": 10, "top": 20, "right": 40, "bottom": 28},
            {"left": 10, "top": 20, "width": 30, "height": 8},
            {"x": 10, "y": 20, "w": 30, "h": 8},
            {"x0": 10, "y0": 20, "x1": 40, "y1": 28},
            {"x1": 10, "y1": 20, "x2": 40, "y2": 28},
            {"x0": 10, "top": 20, "x1": 40, "bottom": 28},
        ],
        ids=str,
    )
    def test_every_way_of_writing_a_box(self, box: Any) -> None:
        size = {"width": 600, "height": 400}
        values: list[Any] = [
            {"words": ["a"], "boxes": [box], **size},
            {"tokens": ["a"], "bboxes": [box], **size},
            {"words": [{"text": "a", "box": box}], **size},
            {"segments": [{"text": "a", "quad": box}], **size},
            {"pages": [{"words": ["a"], "boxes": [box], **size}]},
            [{"segments": [{"text": "a", "polygon": box}], **size}],
            [{"text": "a", "bbox": box}],
        ]
        for value in values:
            assert detect(json.dumps(value).encode()) == "words"
            (page,) = read_value(value)
            assert [(word.text, word.quad) for word in page.words] == [("a", QUAD)]

    def test_what_a_segment_may_say(self) -> None:
        segment = {"text": "a", "quad": list(QUAD), "conf": 0.5, "line": 3, "block": 1}
        value = {
            "page": 4,
            "width": 60,
            "height": 40,
            "unit": "mm",
            "angle": 90,
            "segments": [segment],
        }

        (page,) = read_value(value)

        assert (page.number, page.unit, page.angle) == (4, "mm", 90)
        word = page.words[0]
        assert (word.confidence, word.line, word.block) == (0.5, 3, 1)

    @pytest.mark.parametrize(
        ("more", "unit", "box"),
        [
            ({"unit": "0-1000"}, "relative", (0.1, 0.2, 0.4, 0.28)),
            ({"unit": "0-1000", "width": 600, "height": 400}, "px", (60, 80, 240, 112)),
            ({"unit": "px", "width": 600, "height": 400}, "px", (100, 200, 400, 280)),
        ],
    )
    def test_layoutlm_boxes(
        self, more: dict[str, Any], unit: str, box: tuple[float, float, float, float]
    ) -> None:
        (page,) = read_value({"words": ["a"], "boxes": [[100, 200, 400, 280]], **more})

        assert page.unit == unit
        assert page.words[0].box == pytest.approx(box)

    @pytest.mark.parametrize("more", [{}, {"unit": "relative"}, {"width": 1, "height": 1}])
    def test_fractions_of_the_page(self, more: dict[str, Any]) -> None:
        (page,) = read_value({"words": ["a"], "boxes": [[0.1, 0.2, 0.4, 0.28]], **more})

        assert (page.unit, page.width, page.height) == ("relative", 1, 1)

    def test_fractions_of_a_page_of_known_size(self) -> None:
        value = {"words": ["a"], "boxes": [[0.1, 0.2, 0.4, 0.28]], "width": 600, "height": 400}

        (page,) = read_value(value)

        assert (page.unit, page.words[0].box) == ("px", pytest.approx((60, 80, 240, 112)))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"words": ["a"], "boxes": []}, "1 words, 0 boxes"),
            ({"words": ["a", "b"]}, "words without 'boxes'"),
            ({"segments": [{"text": "lost"}]}, "'lost' has no box"),
            ({"words": ["a"], "boxes": [[1, 2, 3]]}, r"one of its boxes is \[1.0,2.0,3.0\]"),
            ({"words": ["a"], "boxes": [{"left": 1}]}, "one of its boxes is"),
            ({"words": ["a"], "boxes": [[1, 2, None, 4]]}, r"got `null` - at `\$.boxes\[0\]\[2\]`"),
            ({"words": ["a"], "boxes": [["1", 2, 3, 4]]}, r"got `str` - at `\$.boxes\[0\]\[0\]`"),
            ({"words": [5], "boxes": [[1, 2, 3, 4]]}, r"at `\$.words\[0\]`"),
            ({"words": ["a"], "boxes": [[1, 2, 3, 4]], "unit": "ell"}, "its unit is 'ell'"),
            ({"pages": [{}]}, "neither 'words' nor 'segments'"),
        ],
    )
    def test_what_is_wrong_is_named(self, value: Any, message: str) -> None:
        with pytest.raises(BadRequest, match=message):
            read_value(value, "words")
