from __future__ import annotations

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.sources import chosen, is_file


@pytest.mark.parametrize(
    "data",
    [b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"", b"PK\x03\x04", b"\0\0\0\x18ftypheic"],
)
def test_files(data):
    assert is_file(data)


@pytest.mark.parametrize(
    "data",
    [b"{}", b"<alto/>", b"level\tpage\n", "é".encode(), "<a/>".encode("utf-16"), b"\xef\xbb\xbf[]"],
)
def test_texts(data):
    assert not is_file(data)


def test_pages_come_in_the_order_wanted_and_once():
    pages = [Page([], 1, 1, number) for number in (1, 2, 4)]
    assert chosen(pages, None) is pages
    assert [page.number for page in chosen(pages, [4, 1, 4])] == [4, 1]
    with pytest.raises(BadRequest, match=r"no page 3: it has 3, from 1 to 4"):
        chosen(pages, [1, 3])
    with pytest.raises(BadRequest, match="no page 1"):
        chosen([], [1])
