"""`turret chat` with its input piped in."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from turret_server.cli.main import _typer
from turret_server.errors import TurretError


def chat(server: Any, *args: str, question: str = "2 + 2?\n") -> Result:
    return CliRunner().invoke(_typer, ["chat", "--url", server.url, *args], input=question)


def error_of(result: Result) -> TurretError:
    assert isinstance(result.exception, TurretError)
    return result.exception


def test_prints_the_answer_alone_to_stdout(server: Any) -> None:
    result = chat(server)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Four,\nof course.\n", "")


def test_an_answer_that_ends_its_line_gets_no_second_newline(server: Any) -> None:
    server.pieces = ["4\n"]
    assert chat(server).stdout == "4\n"


def test_asks_the_base_model_by_default(server: Any) -> None:
    chat(server)
    assert server.bodies("/v1/chat/completions")[0]["model"] == "base"


def test_the_newline_of_the_shell_is_no_part_of_the_question(server: Any) -> None:
    chat(server, question="two\nlines\n")
    (body,) = server.bodies("/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "two\nlines"}]


def test_options_reach_the_request_and_others_are_left_to_the_server(server: Any) -> None:
    chat(server, "-m", "a:0.7+b", "--temperature", "0", "--max-tokens", "5", "--system", "Be brief")
    (body,) = server.bodies("/v1/chat/completions")
    assert body == {
        "model": "a:0.7+b",
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "2 + 2?"},
        ],
        "temperature": 0.0,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_named_model_costs_no_further_request(server: Any) -> None:
    chat(server, "-m", "sql")
    assert [asked.path for asked in server.asked] == ["/v1/chat/completions"]


def test_the_url_of_an_openai_client_works_too(server: Any) -> None:
    server.url += "/v1/"
    assert chat(server).exit_code == 0


def test_the_key_comes_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURRET_API_KEY", "secret")
    chat(server)
    assert {asked.authorization for asked in server.asked} == {"Bearer secret"}


def test_stats_go_to_stderr(server: Any) -> None:
    result = chat(server, "--stats")
    assert result.stdout == "Four,\nof course.\n"
    assert "7 tokens · " in result.stderr
    assert " tokens/s · first after " in result.stderr
    assert "prompt 31 tokens" in result.stderr


def test_an_answer_cut_by_its_limit_says_so(server: Any) -> None:
    assert "cut off" in chat(server, "-m", "long").stderr


def test_an_empty_pipe_is_refused_before_anything_is_sent(server: Any) -> None:
    assert error_of(chat(server, question=" \n")).what == "there is no question"
    assert server.asked == []


def test_a_refusal_keeps_the_servers_what_why_and_fix(server: Any) -> None:
    error = error_of(chat(server, "-m", "busy"))
    assert (error.what, error.why, error.fix) == ("the server is overloaded", "why", "fix")


def test_a_missing_key_is_explained_in_terms_of_the_command(server: Any) -> None:
    assert "--api-key" in error_of(chat(server, "-m", "locked")).fix


def test_errors_of_other_openai_servers_are_shown(server: Any) -> None:
    assert error_of(chat(server, "-m", "openai")).what == "no such model"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("proxy", "answered 502 Bad Gateway"),
        ("html", "is not understood"),
        ("dying", "the engine died"),
        ("cut", "the answer was cut off"),
    ],
)
def test_what_fails_on_the_way_is_told(server: Any, model: str, what: str) -> None:
    assert what in error_of(chat(server, "-m", model)).what


def test_a_broken_answer_still_ends_its_line(server: Any) -> None:
    assert chat(server, "-m", "dying").stdout == "Four,\nof course.\n"


def test_no_server_is_told_with_a_way_to_start_one() -> None:
    result = CliRunner().invoke(_typer, ["chat", "--url", "http://127.0.0.1:1"], input="hi")
    error = error_of(result)
    assert error.what == "no server answers at http://127.0.0.1:1"
    assert "turret serve demo" in error.fix


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "ftp://host", "http://"])
def test_a_malformed_url_is_named(url: str) -> None:
    result = CliRunner().invoke(_typer, ["chat", "--url", url], input="hi")
    assert "is not the URL of a server" in error_of(result).what
