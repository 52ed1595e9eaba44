import pytest

from turret_server.loadtest.sse import SseParser

STREAM = 'data: {"a":"é"}\n\n: ping\n\nevent: x\ndata:two\ndata: lines\n\ndata: [DONE]\n\n'.encode()
EVENTS = ['{"a":"é"}'.encode(), b"two\nlines", b"[DONE]"]


def _parse(pieces: list[bytes]) -> list[bytes]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize("stream", [STREAM, STREAM.replace(b"\n", b"\r\n")], ids=["lf", "crlf"])
def test_any_cut_in_two_gives_the_same_events(stream: bytes) -> None:
    for cut in range(len(stream) + 1):
        assert _parse([stream[:cut], stream[cut:]]) == EVENTS, cut


@pytest.mark.parametrize("stream", [STREAM, STREAM.replace(b"\n", b"\r\n")], ids=["lf", "crlf"])
def test_single_bytes_give_the_same_events(stream: bytes) -> None:
    assert _parse([bytes([byte]) for byte in stream]) == EVENTS


def test_an_event_without_its_blank_line_is_not_delivered() -> None:
    assert _parse([b"data: half\n"]) == []


def test_one_space_after_the_colon_is_dropped_and_no_more() -> None:
    assert _parse([b"data:  x\n\n"]) == [b" x"]
