"""One page written in every format, as the tools write them: fields that are not read included."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from xml.sax.saxutils import quoteattr

from turret_server.pipeline.documents.page import Page, Word

Lines = Sequence[Sequence[Word]]


def lines_of(page: Page) -> Lines:
    """The words of each line, in order."""
    numbers = dict.fromkeys(word.line for word in page.words)
    return [[word for word in page.words if word.line == number] for number in numbers]


def _around(words: Sequence[Word]) -> tuple[float, float, float, float]:
    boxes = [word.box for word in words]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def tesseract_tsv(page: Page) -> bytes:
    head = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight"
    rows = [head + "\tconf\ttext"]

    def row(level: int, line: int, word: int, box: Sequence[float], conf: str, text: str) -> None:
        left, top, right, bottom = (round(value) for value in box)
        place = [level, 1, int(level > 1), int(level > 2), line, word]
        place += [left, top, right - left, bottom - top]
        rows.append("\t".join(map(str, place)) + f"\t{conf}\t{text}")

    row(1, 0, 0, (0, 0, page.width, page.height), "-1", "")
    row(2, 0, 0, (0, 0, page.width, page.height), "-1", "")
    row(3, 0, 0, (0, 0, page.width, page.height), "-1", "")
    for i, line in enumerate(lines_of(page), 1):
        row(4, i, 0, _around(line), "-1", "")
        for j, word in enumerate(line, 1):
            row(5, i, j, word.box, f"{100 * (word.confidence or 0):.6f}", word.text)
    return ("\n".join(rows) + "\n").encode()


def hocr(page: Page) -> bytes:
    def title(box: Sequence[float], rest: str = "") -> str:
        return "bbox " + " ".join(str(round(value)) for value in box) + rest

    whole = (0, 0, page.width, page.height)
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 '
        'Transitional//EN"\n    "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n <head>\n'
        "  <title></title>\n  <meta name='ocr-system' content='tesseract 5.3.0' />\n </head>\n"
        f" <body>\n  <div class='ocr_page' id='page_1' title='image \"p.png\"; {title(whole)}; "
        f"ppageno 0; scan_res 70 70'>\n   <div class='ocr_carea' id='block_1_1' "
        f"title=\"{title(whole)}\">\n    <p class='ocr_par' id='par_1_1' lang='eng' "
        f'title="{title(whole)}">\n'
    ]
    for i, line in enumerate(lines_of(page), 1):
        rest = "; baseline 0 -4; x_size 18; x_descenders 4; x_ascenders 4"
        parts.append(
            f"     <span class='ocr_line' id='line_1_{i}' title=\"{title(_around(line), rest)}\">\n"
        )
        for j, word in enumerate(line, 1):
            sure = f"; x_wconf {100 * (word.confidence or 0):.0f}"
            text = word.text.replace("&", "&amp;").replace("<", "&lt;")
            parts.append(
                f"      <span class='ocrx_word' id='word_1_{i}_{j}' "
                f"title='{title(word.box, sure)}'>{text}</span>\n"
            )
        parts.append("     </span>\n")
    parts.append("    </p>\n   </div>\n  </div>\n </body>\n</html>\n")
    return "".join(parts).encode()


def alto(page: Page) -> bytes:
    def place(box: Sequence[float]) -> str:
        left, top, right, bottom = box
        return (
            f'HPOS="{left:.0f}" VPOS="{top:.0f}" WIDTH="{right - left:.0f}" '
            f'HEIGHT="{bottom - top:.0f}"'
        )

    whole = place((0, 0, page.width, page.height))
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<alto xmlns="http://www.loc.gov/standards/alto/ns-v3#" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">\n<Description>\n'
        "<MeasurementUnit>pixel</MeasurementUnit>\n</Description>\n<Layout>\n"
        f'<Page WIDTH="{page.width:.0f}" HEIGHT="{page.height:.0f}" PHYSICAL_IMG_NR="0" '
        f'ID="page_0">\n<PrintSpace {whole}>\n<TextBlock ID="block_0" {whole}>\n'
    ]
    for i, line in enumerate(lines_of(page)):
        parts.append(f'<TextLine ID="line_{i}" {place(_around(line))}>\n')
        for j, word in enumerate(line):
            parts.append(
                f'<String ID="string_{i}_{j}" {place(word.box)} WC="{word.confidence or 0:.2f}" '
                f'CONTENT={quoteattr(word.text)}/><SP WIDTH="5" VPOS="5" HPOS="5"/>\n'
            )
        parts.append("</TextLine>\n")
    parts.append("</TextBlock>\n</PrintSpace>\n</Page>\n</Layout>\n</alto>\n")
    return "".join(parts).encode()


def page_xml(page: Page) -> bytes:
    def coords(box: Sequence[float]) -> str:
        left, top, right, bottom = (round(value) for value in box)
        return f'<Coords points="{left},{top} {right},{top} {right},{bottom} {left},{bottom}"/>'

    whole = coords((0, 0, page.width, page.height))
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<PcGts xmlns="http://schema.primaresearch.org/'
        'PAGE/gts/pagecontent/2019-07-15">\n<Metadata><Creator>t</Creator></Metadata>\n'
        f'<Page imageFilename="p.png" imageWidth="{page.width:.0f}" '
        f'imageHeight="{page.height:.0f}">\n<TextRegion id="r">{whole}\n'
    ]
    for i, line in enumerate(lines_of(page)):
        parts.append(f'<TextLine id="l{i}">{coords(_around(line))}\n')
        for j, word in enumerate(line):
            text = word.text.replace("&", "&amp;").replace("<", "&lt;")
            parts.append(
                f'<Word id="w{i}_{j}">{coords(word.box)}'
                f'<TextEquiv conf="{word.confidence or 0:.2f}">'
                f"<Unicode>{text}</Unicode></TextEquiv></Word>\n"
            )
        parts.append("</TextLine>\n")
    parts.append("</TextRegion>\n</Page>\n</PcGts>\n")
    return "".join(parts).encode()


def textract(page: Page) -> bytes:
    def geometry(quad: Sequence[float]) -> object:
        xs = [value / page.width for value in quad[0::2]]
        ys = [value / page.height for value in quad[1::2]]
        left, top = min(xs), min(ys)
        box = {"Width": max(xs) - left, "Height": max(ys) - top, "Left": left, "Top": top}
        polygon = [{"X": x, "Y": y} for x, y in zip(xs, ys, strict=True)]
        return {"BoundingBox": box, "Polygon": polygon}

    whole = geometry((0, 0, page.width, 0, page.width, page.height, 0, page.height))
    blocks: list[object] = []
    words: list[object] = []
    lines = lines_of(page)
    children = [f"line-{i:030}" for i in range(len(lines))]
    blocks.append(
        {"BlockType": "PAGE", "Geometry": whole, "Id": "page",
         "Relationships": [{"Type": "CHILD", "Ids": children}]}
    )  # fmt: skip
    for i, line in enumerate(lines):
        left, top, right, bottom = _around(line)
        own = [f"word-{i:015}-{j:014}" for j in range(len(line))]
        blocks.append(
            {"BlockType": "LINE", "Confidence": 99.1, "Text": " ".join(w.text for w in line),
             "Geometry": geometry((left, top, right, top, right, bottom, left, bottom)),
             "Id": children[i], "Relationships": [{"Type": "CHILD", "Ids": own}]}
        )  # fmt: skip
        words += [
            {"BlockType": "WORD", "Confidence": 100 * (word.confidence or 0), "Text": word.text,
             "TextType": "PRINTED", "Geometry": geometry(word.quad), "Id": ident}
            for word, ident in zip(line, own, strict=True)
        ]  # fmt: skip
    return _dump(
        {"DocumentMetadata": {"Pages": 1}, "Blocks": blocks + words,
         "DetectDocumentTextModelVersion": "1.0"}
    )  # fmt: skip


def azure(page: Page) -> bytes:
    words, lines = [], []
    offset = 0
    content = ""
    for line in lines_of(page):
        text = " ".join(word.text for word in line)
        left, top, right, bottom = _around(line)
        lines.append(
            {"content": text, "polygon": [left, top, right, top, right, bottom, left, bottom],
             "spans": [{"offset": offset, "length": len(text)}]}
        )  # fmt: skip
        at = offset
        for word in line:
            span = {"offset": at, "length": len(word.text)}
            words.append(
                {"content": word.text, "polygon": list(word.quad), "confidence": word.confidence,
                 "span": span}
            )  # fmt: skip
            at += len(word.text) + 1
        offset += len(text) + 1
        content += text + "\n"
    whole = {
        "pageNumber": 1, "angle": 0, "width": page.width, "height": page.height, "unit": "pixel",
        "words": words, "lines": lines, "spans": [{"offset": 0, "length": offset}],
    }  # fmt: skip
    paragraph = {"spans": [{"offset": 0, "length": offset}], "content": content}
    return _dump(
        {"status": "succeeded", "createdDateTime": "2024-11-30T00:00:00Z",
         "analyzeResult": {"apiVersion": "2024-11-30", "modelId": "prebuilt-read",
                           "stringIndexType": "textElements", "content": content,
                           "pages": [whole], "paragraphs": [paragraph]}}
    )  # fmt: skip


def azure_read(page: Page) -> bytes:
    lines = [
        {"boundingBox": [round(v) for v in _quad(_around(line))],
         "text": " ".join(word.text for word in line),
         "words": [{"boundingBox": [round(v) for v in word.quad], "text": word.text}
                   for word in line]}
        for line in lines_of(page)
    ]  # fmt: skip
    whole = {"page": 1, "clockwiseOrientation": 0.0, "width": page.width, "height": page.height}
    return _dump(
        {"status": "Succeeded", "recognitionResults": [{**whole, "unit": "pixel", "lines": lines}]}
    )


def _quad(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def google(page: Page) -> bytes:
    text = ""
    tokens, lines = [], []

    def layout(begin: int, end: int, quad: Sequence[float], sure: float | None) -> object:
        segment = {"startIndex": str(begin)} if begin else {}
        points = zip(quad[0::2], quad[1::2], strict=True)
        vertices = [{"x": x / page.width, "y": y / page.height} for x, y in points]
        return {
            "layout": {
                "textAnchor": {"textSegments": [{**segment, "endIndex": str(end)}]},
                "confidence": sure, "orientation": "PAGE_UP",
                "boundingPoly": {"normalizedVertices": vertices},
            }
        }  # fmt: skip

    for line in lines_of(page):
        begin = len(text)
        for j, word in enumerate(line):
            start = len(text)
            text += word.text + ("\n" if j == len(line) - 1 else " ")
            tokens.append(layout(start, len(text), word.quad, word.confidence))
        lines.append(layout(begin, len(text), _quad(_around(line)), 0.99))
    size = {"width": page.width, "height": page.height, "unit": "pixels"}
    whole = {"pageNumber": 1, "dimension": size, "lines": lines, "tokens": tokens}
    whole["blocks"] = [layout(0, len(text), _quad((0, 0, page.width, page.height)), 0.99)]
    return _dump({"uri": "", "mimeType": "image/png", "text": text, "pages": [whole]})


def doctr(page: Page) -> bytes:
    def geometry(box: Sequence[float]) -> object:
        left, top, right, bottom = box
        return [
            [left / page.width, top / page.height], [right / page.width, bottom / page.height],
        ]  # fmt: skip

    lines = [
        {"geometry": geometry(_around(line)), "objectness_score": 0.9,
         "words": [{"value": word.text, "confidence": word.confidence,
                    "geometry": geometry(word.box), "objectness_score": 0.9,
                    "crop_orientation": {"value": 0, "confidence": None}} for word in line]}
        for line in lines_of(page)
    ]  # fmt: skip
    block = {"geometry": [[0, 0], [1, 1]], "objectness_score": 0.9, "lines": lines, "artefacts": []}
    return _dump(
        {"pages": [{"page_idx": 0, "dimensions": [page.height, page.width],
                    "orientation": {"value": None, "confidence": None},
                    "language": {"value": None, "confidence": None}, "blocks": [block]}]}
    )  # fmt: skip


def _points(word: Word) -> list[list[float]]:
    return [list(point) for point in zip(word.quad[0::2], word.quad[1::2], strict=True)]


def rapidocr(page: Page) -> bytes:
    return _dump([[_points(word), word.text, word.confidence] for word in page.words])


def rapidocr_fields(page: Page) -> bytes:
    return _dump(
        {"boxes": [_points(word) for word in page.words],
         "txts": [word.text for word in page.words],
         "scores": [word.confidence for word in page.words], "elapse": 0.4}
    )  # fmt: skip


def rapidocr_items(page: Page) -> bytes:
    return _dump([{"box": _points(w), "txt": w.text, "score": w.confidence} for w in page.words])


def paddleocr(page: Page) -> bytes:
    return _dump(
        {"input_path": "p.png", "page_index": None,
         "model_settings": {"use_doc_preprocessor": False},
         "dt_polys": [_points(word) for word in page.words], "text_type": "general",
         "textline_orientation_angles": [0] * len(page.words), "return_word_box": False,
         "rec_texts": [word.text for word in page.words],
         "rec_scores": [word.confidence for word in page.words],
         "rec_polys": [_points(word) for word in page.words],
         "rec_boxes": [[round(v) for v in word.box] for word in page.words]}
    )  # fmt: skip


def paddleocr_2(page: Page) -> bytes:
    return _dump([[[_points(word), [word.text, word.confidence]] for word in page.words]])


def due(page: Page) -> bytes:
    tokens = [word for line in lines_of(page) for word in line]
    ends = [0]
    for line in lines_of(page):
        ends.append(ends[-1] + len(line))
    ranges = [list(pair) for pair in pairwise(ends)]
    common = {
        "tokens": [word.text for word in tokens],
        "positions": [list(word.box) for word in tokens],
        "scores": [word.confidence for word in tokens],
        "structures": {
            "pages": {"structure_value": [[0, len(tokens)]],
                      "positions": [[0, 0, page.width, page.height]]},
            "lines": {"structure_value": ranges,
                      "positions": [list(_around(line)) for line in lines_of(page)]},
        },
    }  # fmt: skip
    return _dump(
        {"name": "document",
         "contents": [{"tool_name": "tesseract", "text": ""},
                      {"tool_name": "microsoft_cv", "text": "", "common_format": common}]}
    )  # fmt: skip


def words(page: Page) -> bytes:
    return _dump(
        {"words": [word.text for word in page.words], "boxes": [word.box for word in page.words],
         "confidences": [word.confidence for word in page.words],
         "width": page.width, "height": page.height}
    )  # fmt: skip


def segments(page: Page) -> bytes:
    return _dump(
        {"page": 1, "width": page.width, "height": page.height, "unit": "px",
         "segments": [{"text": word.text, "quad": word.quad, "confidence": word.confidence,
                       "line": word.line, "block": word.block} for word in page.words]}
    )  # fmt: skip


# What writes a page -> the format it is, and how far its coordinates may be off, in pixels.
WRITERS: dict[Callable[[Page], bytes], tuple[str, float]] = {
    tesseract_tsv: ("tesseract-tsv", 0.5),
    hocr: ("hocr", 0.5),
    alto: ("alto", 1.0),
    page_xml: ("page-xml", 0.5),
    textract: ("textract", 1e-6),
    azure: ("azure", 0.0),
    azure_read: ("azure-read", 0.5),
    google: ("google", 1e-6),
    doctr: ("doctr", 1e-6),
    rapidocr: ("rapidocr", 0.0),
    rapidocr_fields: ("rapidocr", 0.0),
    rapidocr_items: ("rapidocr", 0.0),
    paddleocr: ("paddleocr", 0.0),
    paddleocr_2: ("paddleocr", 0.0),
    due: ("due", 0.0),
    words: ("words", 0.0),
    segments: ("words", 0.0),
}
