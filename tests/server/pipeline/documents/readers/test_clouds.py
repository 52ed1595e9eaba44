"""What is particular to Textract, Azure and Google."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.page import Page, upright
from turret_server.pipeline.documents.readers import detect, read_value


def texts(pages: list[Page]) -> list[list[str]]:
    return [[word.text for word in page.words] for page in pages]


def block(
    kind: str, ident: str, text: str = "", children: tuple[str, ...] = (), **more: Any
) -> Any:
    relationships = [{"Type": "CHILD", "Ids": list(children)}] if children else None
    box = {"Left": 0.1, "Top": 0.2, "Width": 0.3, "Height": 0.05}
    return {
        "BlockType": kind, "Id": ident, "Text": text, "Confidence": 99.5,
        "Geometry": {"BoundingBox": box}, "Relationships": relationships, **more,
    }  # fmt: skip


class TestTextract:
    def test_a_result_in_several_responses(self) -> None:
        first = {"Blocks": [block("PAGE", "p1", Page=1), block("WORD", "a", "a", Page=1)]}
        second = {
            "Blocks": [block("WORD", "b", "b", Page=1), block("PAGE", "p2", Page=2),
                       block("WORD", "c", "c", Page=2)]
        }  # fmt: skip

        pages = read_value([first, second])

        assert texts(pages) == [["a", "b"], ["c"]]
        assert [page.number for page in pages] == [1, 2]

    def test_responses_of_one_page_each(self) -> None:
        one = {"Blocks": [block("PAGE", "p"), block("WORD", "w", "a")]}

        pages = read_value([one, one])

        assert texts(pages) == [["a"], ["a"]]
        assert [page.number for page in pages] == [1, 2]

    def test_boxes_without_polygons(self) -> None:
        (page,) = read_value({"Blocks": [block("WORD", "w", "a")]})

        assert page.words[0].quad == pytest.approx(upright(0.1, 0.2, 0.4, 0.25))
        assert (page.unit, page.words[0].confidence) == ("relative", 0.995)

    def test_lines_where_there_are_no_words(self) -> None:
        (page,) = read_value({"Blocks": [block("LINE", "l", "a line")]})

        assert texts([page]) == [["a line"]]

    def test_layout_gives_blocks(self) -> None:
        blocks = [
            block("LAYOUT_TITLE", "t", "", ("l1",)), block("LAYOUT_TEXT", "x", "", ("l2",)),
            block("LINE", "l1", "a", ("w1",)), block("LINE", "l2", "b", ("w2",)),
            block("WORD", "w1", "a"), block("WORD", "w2", "b"),
        ]  # fmt: skip

        (page,) = read_value({"Blocks": blocks})

        assert [(word.line, word.block) for word in page.words] == [(0, 0), (1, 1)]

    def test_check_boxes(self) -> None:
        blocks = [
            block("WORD", "w", "Student"),
            block("SELECTION_ELEMENT", "s", SelectionStatus="SELECTED"),
            block("SELECTION_ELEMENT", "n", SelectionStatus="NOT_SELECTED"),
        ]

        (page,) = read_value({"Blocks": blocks})

        assert texts([page]) == [["Student", "☑", "☐"]]
        assert page.words[1].quad == page.words[0].quad
        assert page.words[1].confidence == 0.995

    def test_a_word_without_geometry_is_named(self) -> None:
        with pytest.raises(BadRequest, match="'a' has no Geometry"):
            read_value({"Blocks": [block("WORD", "w", "a") | {"Geometry": None}]})


QUAD = [1.0, 1.0, 2.0, 1.0, 2.0, 1.2, 1.0, 1.2]


class TestAzure:
    def test_version_2(self) -> None:
        word = {"boundingBox": QUAD, "text": "a", "confidence": 0.9}
        line = {"boundingBox": QUAD, "text": "a", "words": [word]}
        page = {
            "page": 3,
            "angle": -1.5,
            "width": 8.5,
            "height": 11,
            "unit": "inch",
            "lines": [line],
        }
        value = {
            "status": "succeeded",
            "analyzeResult": {"version": "2.1.0", "readResults": [page]},
        }

        for name in (None, "azure", "azure-read"):
            (found,) = read_value(value, name)
            assert (found.number, found.unit, found.angle, found.width) == (3, "inch", -1.5, 8.5)
            assert found.words[0].quad == tuple(QUAD)
            assert found.words[0].confidence == 0.9

    @pytest.mark.parametrize("name", ["polygon", "boundingBox"])
    def test_version_3(self, name: str) -> None:
        word = {"content": "a", name: QUAD, "confidence": 0.9, "span": {"offset": 0, "length": 1}}
        page = {"pageNumber": 1, "width": 8.5, "height": 11, "unit": "inch", "words": [word]}

        (found,) = read_value({"analyzeResult": {"pages": [page]}})

        assert found.words[0].quad == tuple(QUAD)

    def test_what_the_python_client_of_version_3_exports(self) -> None:
        corners = [{"x": x, "y": y} for x, y in zip(QUAD[0::2], QUAD[1::2], strict=True)]
        word = {"content": "a", "polygon": corners, "span": {"offset": 0, "length": 1}}
        page = {"page_number": 2, "width": 8.5, "height": 11, "unit": "inch", "words": [word]}
        value = {"api_version": "2023-07-31", "content": "a", "pages": [page]}

        assert detect(json.dumps(value).encode()) == "azure"
        (found,) = read_value(value)
        assert (found.number, found.words[0].quad) == (2, tuple(QUAD))

    def test_lines_of_pages_and_paragraphs(self) -> None:
        def word(text: str, offset: int) -> Any:
            return {"content": text, "polygon": QUAD, "span": {"offset": offset, "length": 1}}

        def line(offset: int) -> Any:
            return {"content": "", "polygon": QUAD, "spans": [{"offset": offset, "length": 1}]}

        pages = [
            {"pageNumber": n, "words": [word("a", n), word("b", n + 10)], "lines": [line(n)]}
            for n in (1, 2)
        ]
        paragraphs = [
            {"spans": [{"offset": 0, "length": 2}]},
            {"spans": [{"offset": 2, "length": 10}]},
        ]
        value = {"analyzeResult": {"pages": pages, "paragraphs": paragraphs}}

        found = read_value(value)

        assert [[(w.line, w.block) for w in page.words] for page in found] == [
            [(0, 0), (-1, 1)], [(1, 1), (-1, -1)],
        ]  # fmt: skip

    def test_lines_where_there_are_no_words(self) -> None:
        line = {"content": "a line", "polygon": QUAD, "spans": []}
        value = {"analyzeResult": {"pages": [{"pageNumber": 1, "lines": [line]}]}}

        assert texts(read_value(value)) == [["a line"]]

    @pytest.mark.parametrize("name", ["selectionMarks", "selection_marks"])
    def test_check_boxes(self, name: str) -> None:
        marks = [
            {
                "state": state,
                "polygon": QUAD,
                "confidence": 0.9,
                "span": {"offset": 3, "length": 10},
            }
            for state in ("selected", "unselected")
        ]
        marks.append(marks[0] | {"polygon": []})
        paragraphs = [{"spans": [{"offset": 0, "length": 20}]}]
        page = {"pageNumber": 1, "words": [], name: marks}

        (found,) = read_value({"analyzeResult": {"pages": [page], "paragraphs": paragraphs}})

        assert texts([found]) == [["☑", "☐"]]
        assert [(w.quad, w.confidence, w.block) for w in found.words] == [(tuple(QUAD), 0.9, 0)] * 2

    def test_check_boxes_of_version_2(self) -> None:
        marks = [{"boundingBox": QUAD, "state": "selected", "confidence": 0.9}]
        page = {"page": 1, "lines": [], "selectionMarks": marks}

        (found,) = read_value({"analyzeResult": {"readResults": [page]}})

        assert [(w.text, w.quad) for w in found.words] == [("☑", tuple(QUAD))]

    def test_an_unfinished_analysis_is_named(self) -> None:
        with pytest.raises(BadRequest, match="analyzeResult"):
            read_value({"status": "running"}, "azure")

    def test_a_line_of_read_without_words(self) -> None:
        page = {"lines": [{"boundingBox": [10, 10, 50, 10, 50, 20, 10, 20], "text": "a line"}]}

        (found,) = read_value({"recognitionResults": [page]}, "docvqa")

        assert found.words[0].text == "a line"
        assert (found.width, found.height) == (50, 20)


def token(begin: int, end: int, x: float, **more: Any) -> Any:
    vertices = [{"x": x, "y": 0.1}, {"x": x + 0.05, "y": 0.1}, {"x": x + 0.05, "y": 0.12}]
    vertices.append({"x": x, "y": 0.12})
    layout = {
        "textAnchor": {"textSegments": [{"startIndex": str(begin), "endIndex": str(end)}]},
        "boundingPoly": {"normalizedVertices": vertices}, "confidence": 0.9,
    }  # fmt: skip
    return {"layout": layout | more}


class TestGoogle:
    def test_tokens_within_a_word_are_joined(self) -> None:
        text = "Total $1,200\n"
        tokens = [token(0, 6, 0.1), token(6, 7, 0.2), token(7, 13, 0.25)]
        page = {"dimension": {"width": 1000, "height": 1000}, "tokens": tokens}

        (found,) = read_value({"text": text, "pages": [page]})

        assert [word.text for word in found.words] == ["Total", "$1,200"]
        assert found.words[1].box == pytest.approx((200, 100, 300, 120))

    def test_tokens_far_apart_are_not(self) -> None:
        page = {
            "dimension": {"width": 10, "height": 10},
            "tokens": [token(0, 1, 0.1), token(1, 2, 0.5)],
        }

        assert texts(read_value({"text": "ab", "pages": [page]})) == [["a", "b"]]

    def test_the_response_of_a_processor(self) -> None:
        page = {
            "pageNumber": 1,
            "dimension": {"width": 10, "height": 10},
            "tokens": [token(0, 1, 0.1)],
        }
        value = {"document": {"text": "a", "pages": [page]}}

        assert detect(json.dumps(value).encode()) == "google"
        assert texts(read_value(value)) == [["a"]]

    def test_zeros_are_left_out_and_pixels_may_stand_for_fractions(self) -> None:
        item = {
            "layout": {
                "textAnchor": {"textSegments": [{"endIndex": 1}]},
                "boundingPoly": {"vertices": [{}, {"x": 9}, {"x": 9, "y": 5}, {"y": 5}]},
            }
        }
        page = {"dimension": {"width": 100, "height": 50}, "lines": [item]}

        (found,) = read_value({"text": "a", "pages": [page]})

        assert found.words[0].quad == upright(0, 0, 9, 5)

    def test_check_boxes(self) -> None:
        def field(kind: str) -> Any:
            value = token(0, 0, 0.5)["layout"] | {"textAnchor": {}}
            return {"fieldName": {}, "fieldValue": value, "valueType": kind}

        fields = [field("filled_checkbox"), field("unfilled_checkbox"), field("")]
        fields.append({"fieldValue": {}, "valueType": "filled_checkbox"})
        page = {"tokens": [token(0, 1, 0.1)], "formFields": fields}

        (found,) = read_value({"text": "a", "pages": [page]})

        assert texts([found]) == [["a", "☑", "☐"]]
        assert found.words[1].box == pytest.approx((0.5, 0.1, 0.55, 0.12))

    @pytest.mark.parametrize(
        ("name", "angle"), [("PAGE_UP", 0), ("PAGE_RIGHT", 90), ("PAGE_LEFT", 270)]
    )
    def test_orientation(self, name: str, angle: float) -> None:
        page = {"layout": {"orientation": name}, "tokens": []}

        assert read_value({"text": "", "pages": [page]})[0].angle == angle

    def test_an_index_that_is_no_number_is_named(self) -> None:
        item = token(0, 1, 0.1)
        item["layout"]["textAnchor"]["textSegments"][0]["endIndex"] = "many"

        with pytest.raises(BadRequest, match="index into its text is no number"):
            read_value({"text": "a", "pages": [{"tokens": [item]}]})
