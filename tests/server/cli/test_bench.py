"""`turret bench` from its command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from turret_server.cli.bench import app
from turret_server.errors import BadRequest

_ANSWER = {
    "choices": [{"text": "x", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send({"data": [{"id": "base"}]} if self.path == "/v1/models" else {"version": "1"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(_ANSWER)

    def _send(self, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """A server in a thread: the command runs event loops of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_run_and_a_comparison(url: str, tmp_path: Path) -> None:
    runner, paths = CliRunner(), [str(tmp_path / f"{name}.json") for name in "ab"]
    for path in paths:
        words = ["serve", "--url", url, "-c", "2", "-n", "4", "--no-stream", "--api-key", "sesame"]
        outcome = runner.invoke(app, [*words, "-o", path, "--goodput", "e2e:60000"])
        assert outcome.exit_code == 0, outcome.output
        result = json.loads(Path(path).read_text())
        assert result["summary"]["completed"] == 4
        assert result["config"]["models"] == ["base"]
        assert result["server"] == {"version": "1"}
        assert "sesame" not in Path(path).read_text()
    report = tmp_path / "report.html"
    outcome = runner.invoke(app, ["compare", *paths, "--html", str(report)])
    assert outcome.exit_code == 0, outcome.output
    assert report.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--model", "m", "-n", "1"], "Nothing drives the load"),
        (["serve", "--model", "m", "-n", "1", "-c", "1", "--endpoint", "x"], "--endpoint 'x'"),
        (["serve", "--model", "m", "-n", "1", "--rate", "0"], "--rate"),
        (["serve", "--model", "m", "-n", "1", "-c", "1", "--burstiness", "2"], "need --rate"),
        (["compare", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_bad_words_end_with_a_reason(words: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, words)
    assert isinstance(outcome.exception, BadRequest)
    assert message in str(outcome.exception)


def test_a_server_that_is_not_there_is_told(unused_tcp_port: int) -> None:
    words = ["serve", "--url", f"http://127.0.0.1:{unused_tcp_port}", "-c", "1", "-n", "1"]
    outcome = CliRunner().invoke(app, words)
    assert isinstance(outcome.exception, BadRequest)
    assert "No model to ask for" in str(outcome.exception)
