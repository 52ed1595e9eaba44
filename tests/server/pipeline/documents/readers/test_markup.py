"""What is particular to the formats in XML and HTML, and to Tesseract's TSV."""

from __future__ import annotations

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.page import Page, upright
from turret_server.pipeline.documents.readers import detect, read


def texts(pages: list[Page]) -> list[list[str]]:
    return [[word.text for word in page.words] for page in pages]


def alto(line: str, unit: str = "pixel", block: str = "") -> bytes:
    return (
        f"<alto xmlns='http://www.loc.gov/standards/alto/ns-v2#'><Description><MeasurementUnit>"
        f"{unit}</MeasurementUnit></Description><Layout><Page WIDTH='2100' HEIGHT='2970'>"
        f"<PrintSpace><TextBlock {block}><TextLine>{line}</TextLine></TextBlock></PrintSpace>"
        f"</Page></Layout></alto>"
    ).encode()


STRING = "<String CONTENT='{}' HPOS='{}' VPOS='200' WIDTH='100' HEIGHT='50'/>"


class TestAlto:
    @pytest.mark.parametrize(
        ("unit", "name", "size", "left"),
        [
            ("pixel", "px", (2100, 2970), 300),
            ("mm10", "mm", (210, 297), 30),
            ("inch1200", "inch", (1.75, 2.475), 0.25),
        ],
    )
    def test_units(self, unit: str, name: str, size: tuple[float, float], left: float) -> None:
        (page,) = read(alto(STRING.format("a", 300), unit))

        assert (page.unit, page.width, page.height) == (name, *size)
        assert page.words[0].box[0] == left

    def test_an_unknown_unit_is_named(self) -> None:
        with pytest.raises(BadRequest, match="MeasurementUnit is 'furlong'"):
            read(alto("", "furlong"))

    def test_a_hyphen_belongs_to_its_word(self) -> None:
        line = STRING.format("exam", 300) + "<HYP CONTENT='-'/>"

        assert texts(read(alto(line))) == [["exam-"]]

    def test_rotation_is_counterclockwise(self) -> None:
        (page,) = read(alto(STRING.format("up", 300), block="ROTATION='90'"))

        assert page.words[0].quad == (300, 250, 300, 200, 400, 200, 400, 250)

    def test_without_a_namespace_and_with_a_size_of_the_print_space_alone(self) -> None:
        data = (
            b"<alto><Layout><Page><PrintSpace HPOS='10' VPOS='20' WIDTH='100' HEIGHT='200'>"
            b"<TextBlock><TextLine><String CONTENT='a' HPOS='20' VPOS='30' WIDTH='5' HEIGHT='9'/>"
            b"</TextLine></TextBlock></PrintSpace></Page></Layout></alto>"
        )

        (page,) = read(data)

        assert (page.width, page.height) == (110, 220)
        assert page.words[0].quad == upright(20, 30, 25, 39)

    def test_pages_are_numbered(self) -> None:
        data = b"<alto><Layout><Page/><Page/></Layout></alto>"

        assert [page.number for page in read(data)] == [1, 2]


def page_xml(inner: str) -> bytes:
    return (
        "<PcGts xmlns='http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15'>"
        f"<Page imageWidth='600' imageHeight='400'>{inner}</Page></PcGts>"
    ).encode()


def region(ident: str, text: str, attributes: str = "", points: str = "1,2 11,2 11,8 1,8") -> str:
    return (
        f"<TextRegion id='{ident}' {attributes}><TextLine><Coords points='{points}'/>"
        f"<TextEquiv conf='0.75'><Unicode>{text}</Unicode></TextEquiv></TextLine></TextRegion>"
    )


class TestPageXml:
    def test_a_line_without_words_stands_for_itself(self) -> None:
        (page,) = read(page_xml(region("r", "a whole line")))

        (word,) = page.words
        assert (word.text, word.quad, word.confidence) == (
            "a whole line",
            upright(1, 2, 11, 8),
            0.75,
        )

    def test_regions_come_in_reading_order(self) -> None:
        order = (
            "<ReadingOrder><OrderedGroup id='g'><RegionRefIndexed index='0' regionRef='b'/>"
            "<RegionRefIndexed index='1' regionRef='a'/></OrderedGroup></ReadingOrder>"
        )
        inner = region("a", "second") + region("b", "first") + region("c", "last")

        assert texts(read(page_xml(order + inner))) == [["first", "second", "last"]]

    def test_an_outline_gives_its_box(self) -> None:
        (page,) = read(page_xml(region("r", "x", points="5,9 1,2 11,3 12,8 7,10 2,4")))

        assert page.words[0].quad == upright(1, 2, 12, 10)

    def test_orientation_says_how_to_turn_the_region_back(self) -> None:
        (page,) = read(page_xml(region("r", "x", "orientation='90'")))

        assert page.words[0].quad == (1, 8, 1, 2, 11, 2, 11, 8)

    def test_text_without_coordinates_is_refused(self) -> None:
        with pytest.raises(BadRequest, match="'x' has no Coords"):
            read(page_xml(region("r", "x", points="")))


HOCR = "<html><body><div class='ocr_page' title='bbox 0 0 600 400'>{}</div></body></html>"


class TestHocr:
    def test_html_that_is_not_well_formed(self) -> None:
        inner = (
            "<p class=ocr_par><span class='ocr_line' title='bbox 1 2 30 9'><br>"
            "<span class='ocrx_word' title=\"bbox 1 2 11 9; x_wconf 87\">caf&eacute;</span>"
            "<span class='ocrx_word' title='x_wconf 5;bbox 15 2 30 9'><b>bar</b></span></span>"
        )

        (page,) = read(HOCR.format(inner).encode())

        assert [(w.text, w.box, w.confidence) for w in page.words] == [
            ("café", (1, 2, 11, 9), 0.87), ("bar", (15, 2, 30, 9), 0.05),
        ]  # fmt: skip
        assert {word.line for word in page.words} == {0}
        assert (page.width, page.height) == (600, 400)

    def test_a_line_without_words_stands_for_itself(self) -> None:
        line = "<span class='ocr_line' title='bbox {} 2 {} 9'>{}</span>"
        inner = line.format(1, 11, "one <i>line</i>") + line.format(20, 30, "two")

        assert texts(read(HOCR.format(inner).encode())) == [["one line", "two"]]

    def test_entities_of_html_in_xhtml(self) -> None:
        doctype = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x.dtd">'
        word = "<span class='ocrx_word' title='bbox 1 2 11 9'>a&nbsp;b&eacute;</span>"

        assert texts(read((doctype + HOCR.format(word)).encode())) == [["a bé"]]

    def test_a_file_that_was_cut_off_is_refused(self) -> None:
        with pytest.raises(BadRequest, match="not well-formed"):
            read(HOCR.format("<p>").encode()[:-20])

    def test_other_html_is_refused(self) -> None:
        with pytest.raises(BadRequest, match="ocr_page"):
            read(b"<html><body><p class='x'>Hello</p></body></html>")

    def test_deep_html_is_refused(self) -> None:
        with pytest.raises(BadRequest, match="nested"):
            read(HOCR.format("<i>" * 100_000).encode())

    def test_a_word_without_a_box_is_named(self) -> None:
        with pytest.raises(BadRequest, match="'lost' has no bbox"):
            read(HOCR.format("<span class='ocrx_word' title='x_wconf 3'>lost</span>").encode())


@pytest.mark.parametrize("root", ["alto", "PcGts", "html"])
def test_entity_declarations_are_refused(root: str) -> None:
    bomb = f"<!DOCTYPE {root} [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><{root}>&b;</{root}>"

    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(BadRequest, match="declares XML entities"):
            read(bomb.encode(encoding))


def test_xml_in_utf_16() -> None:
    data = alto(STRING.format("é", 300)).decode()

    assert texts(read(data.encode("utf-16"))) == [["é"]]


HEADER = (
    "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
)
PAGE_ROW = "1\t{}\t0\t0\t0\t0\t0\t0\t600\t400\t-1\t"
WORD_ROW = "5\t{}\t1\t1\t1\t1\t10\t20\t30\t8\t96.5\t{}"


def tsv(*rows: str) -> bytes:
    return "\n".join([HEADER, *rows]).encode()


class TestTesseractTsv:
    def test_pages(self) -> None:
        pages = read(
            tsv(
                PAGE_ROW.format(1),
                WORD_ROW.format(1, "a"),
                PAGE_ROW.format(2),
                WORD_ROW.format(2, "b"),
            )
        )

        assert texts(pages) == [["a"], ["b"]]
        assert [page.number for page in pages] == [1, 2]
        assert pages[1].words[0].confidence == 0.965

    def test_files_one_after_the_other(self) -> None:
        one = [PAGE_ROW.format(1), WORD_ROW.format(1, "a")]

        assert texts(read(tsv(*one, HEADER, *one))) == [["a"], ["a"]]

    def test_words_alone_have_pages_as_large_as_they_need(self) -> None:
        (page,) = read(tsv(WORD_ROW.format(1, "a")))

        assert (page.width, page.height) == (40, 28)

    def test_moved_columns_and_windows_line_ends(self) -> None:
        rows = [HEADER, PAGE_ROW.format(1), WORD_ROW.format(1, "a")]
        moved = "\r\n".join("\t".join(["0", *reversed(row.split("\t"))]) for row in rows)

        assert texts(read(moved.encode(), "tesseract-tsv")) == [["a"]]

    def test_quotes_and_tabs_in_text_are_text(self) -> None:
        assert texts(read(tsv(WORD_ROW.format(1, '"a\tb')))) == [['"a b']]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("5\t1\t1", "line 2 has 3 of 12 columns"),
            (WORD_ROW.format(1, "a").replace("20", "x"), "line 2: could not convert"),
            (WORD_ROW.format(1, "a").replace("20", "nan"), "'a' lies at 10, nan"),
        ],
    )
    def test_bad_rows_are_named(self, row: str, message: str) -> None:
        with pytest.raises(BadRequest, match=message):
            read(tsv(row))

    def test_utf_16_as_shells_redirect_it(self) -> None:
        data = tsv(WORD_ROW.format(1, "é")).decode()

        assert detect(data.encode("utf-16")) == "tesseract-tsv"
        assert texts(read(data.encode("utf-16"))) == [["é"]]
