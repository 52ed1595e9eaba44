"""XML and HTML as element trees, and without what only attacks use."""

from __future__ import annotations

import re
from html import entities
from html.parser import HTMLParser
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from turret_server.pipeline.documents.readers.builder import Builder

_CHUNK = 4096
_DECLARATION = re.compile(r"<!--|<[!?]")
_VOID = frozenset(["area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"])
_MAX_DEPTH = 200  # of HTML whose elements are not closed


class _Refused(Exception):
    """The document declares entities."""


class _Prolog(Exception):
    """The document's first element has begun."""


def parse_xml(data: bytes, document: Builder) -> Element:
    """The root of an XML document.

    Raises:
        BadRequest: it is not well formed, or declares entities (no OCR tool writes any, while
            a few lines of them unfold to gigabytes or name other files).
    """
    refuse_entities(data, document)
    try:
        parser = ElementTree.XMLParser()
        # Those of HTML, which expat does not know: XHTML names them without declaring them.
        parser.entity.update(_HTML_ENTITIES)
        parser.feed(data)
        return parser.close()
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise document.wrong(f"it is not well-formed XML: {error}") from error


def parse_html(data: bytes, document: Builder) -> Element:
    """The root of HTML that need not be well formed.

    Raises:
        BadRequest: it holds no element, or nests them too deeply.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    reader = _TreeParser()
    reader.feed(_tags_only(data.decode(encoding, "replace")))
    reader.close()
    if reader.too_deep:
        raise document.wrong(f"its elements are nested more than {_MAX_DEPTH} deep")
    return reader.root()


def refuse_entities(data: bytes, document: Builder) -> None:
    """Look for entities of its own in what comes before a document's first element.

    Raises:
        BadRequest: it declares some.
    """

    def declared(*_: object) -> None:
        raise _Refused

    def begun(*_: object) -> None:
        raise _Prolog

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = declared
    parser.StartElementHandler = begun
    try:
        for begin in range(0, len(data), _CHUNK):
            parser.Parse(data[begin : begin + _CHUNK])
    except _Refused:
        raise document.wrong("it declares XML entities", "Remove its <!ENTITY ...>.") from None
    except (_Prolog, expat.ExpatError, ValueError, LookupError):
        return  # whoever parses all of it sees what is wrong


def _tags_only(text: str) -> str:
    """Without comments and declarations, and without what follows the last tag.

    On these, where they are not closed, Python's parser can take time that grows with the square
    of their number.
    """
    kept, at = [], 0
    text = text[: text.rfind(">") + 1]
    while (start := _DECLARATION.search(text, at)) is not None:
        kept.append(text[at : start.start()])
        end = "-->" if start.group() == "<!--" else ">"
        at = text.find(end, start.end())
        if at < 0:
            return "".join(kept)
        at += len(end)
    return "".join([*kept, text[at:]])


class _TreeParser(HTMLParser):
    """Builds a tree; end tags close all that was left open within."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._builder = ElementTree.TreeBuilder()
        self._builder.start("html", {})
        self._open = ["html"]
        self.too_deep = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len(self._open) >= _MAX_DEPTH:
            self.too_deep = True
            return
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in _VOID:
            self._builder.end(tag)
        else:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open[1:]:
            while self._open[-1] != tag:
                self._builder.end(self._open.pop())
            self._builder.end(self._open.pop())

    def handle_data(self, data: str) -> None:
        self._builder.data(data)

    def root(self) -> Element:
        while self._open:
            self._builder.end(self._open.pop())
        return self._builder.close()


_HTML_ENTITIES = {name: chr(point) for name, point in entities.name2codepoint.items()}
