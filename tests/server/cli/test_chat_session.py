"""The interactive loop, with lines from a script."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from turret_server.cli.chat_session import ChatSession
from turret_server.cli.conversation import Conversation
from turret_server.cli.remote import Remote, RemoteError

Talk = Callable[..., tuple[str, Conversation]]


@pytest.fixture
def talk(server: Any) -> Talk:
    """Run a session over some lines; what it prints beside the answers, and where it ended."""

    def run(
        *lines: str | type[BaseException], model: str = "base", stats: bool = False
    ) -> tuple[str, Conversation]:
        script = iter(lines)

        def read(_: str) -> str:
            line = next(script, EOFError)
            if isinstance(line, str):
                return line
            raise line

        output = io.StringIO()
        conversation = Conversation(model)
        with asyncio.Runner() as runner:
            remote = Remote(server.url)
            runner.run(remote.__aenter__())
            try:
                ChatSession(
                    runner,
                    remote,
                    conversation,
                    server.cards,
                    stats=stats,
                    read=read,
                    console=Console(file=output, width=200),
                ).run()
            finally:
                runner.run(remote.__aexit__())
        return output.getvalue(), conversation

    return run


def asked(server: Any) -> list[tuple[str, list[str]]]:
    """Per chat request: the model, and what each message says."""
    return [
        (body["model"], [message["content"] for message in body["messages"]])
        for body in server.bodies("/v1/chat/completions")
    ]


ANSWER = "Four,\nof course."


def test_the_conversation_goes_on(server: Any, talk: Talk) -> None:
    talk("2 + 2?", "", "Sure?")
    assert asked(server) == [("base", ["2 + 2?"]), ("base", ["2 + 2?", ANSWER, "Sure?"])]


def test_switching_keeps_the_conversation(server: Any, talk: Talk) -> None:
    talk("2 + 2?", "/adapter sql", "Sure?", "/model formal:0.7+sql", "Sure?", "/model base")
    models = [model for model, _ in asked(server)]
    assert models == ["base", "sql", "formal:0.7+sql"]
    assert asked(server)[1][1] == ["2 + 2?", ANSWER, "Sure?"]


def test_an_unknown_name_is_refused_and_the_old_one_stays(talk: Talk) -> None:
    printed, conversation = talk("/adapter sqll")
    assert "the model 'sqll' does not exist" in printed
    assert "Did you mean 'sql'?" in printed
    assert conversation.model == "base"


def test_an_unknown_first_model_ends_the_session(talk: Talk) -> None:
    with pytest.raises(RemoteError, match="does not exist"):
        talk(model="nobody")


def test_lists_what_is_served_and_marks_the_current(server: Any, talk: Talk) -> None:
    printed, _ = talk("/adapter sql", "/adapters")
    rows = [line.split() for line in printed.splitlines()[1:5]]
    assert rows == [
        ["base", "base", "demo"],
        ["formal-sql", "recipe", "formal:0.7+sql"],
        ["formal", "lora", "/adapters/formal"],
        ["*", "sql", "lora", "/adapters/sql"],
    ]


def test_lists_what_was_loaded_meanwhile(server: Any, talk: Talk) -> None:
    server.cards.append({"id": "fresh", "kind": "lora", "root": "/adapters/fresh"})
    assert "fresh" in talk("/adapter")[0]


def test_reset_forgets_but_keeps_model_and_system(server: Any, talk: Talk) -> None:
    talk("/system Be brief", "/adapter sql", "2 + 2?", "/reset", "Sure?")
    assert asked(server)[-1] == ("sql", ["Be brief", "Sure?"])


def test_system_is_set_shown_and_removed(server: Any, talk: Talk) -> None:
    printed, _ = talk(
        "/system", "/system Be [b]brief[/b]", "/system", "a", "/system -", "/reset", "b"
    )
    assert "no system message is set" in printed
    assert "Be [b]brief[/b]" in printed
    assert asked(server) == [("base", ["Be [b]brief[/b]", "a"]), ("base", ["b"])]


def test_saves_the_body_of_a_request(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk("/system Be brief", "2 + 2?", f"/save {file}")
    assert json.loads(file.read_text()) == {
        "model": "base",
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": ANSWER},
        ],
    }


def test_saving_overwrites_nothing(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("precious")
    printed, _ = talk(f"/save {file}")
    assert "was not written" in printed
    assert file.read_text() == "precious"


def test_help_names_every_command(talk: Talk) -> None:
    printed, _ = talk("/help")
    for command in ("/adapter", "/model", "/adapters", "/system", "/reset", "/save", "/quit"):
        assert command in printed


@pytest.mark.parametrize(("line", "hint"), [("/adaptr sql", "/adapter?"), ("/etc/x", "a blank")])
def test_an_unknown_command_is_not_sent(server: Any, talk: Talk, line: str, hint: str) -> None:
    printed, _ = talk(line)
    assert hint in printed
    assert asked(server) == []


def test_a_blank_before_a_slash_sends_it(server: Any, talk: Talk) -> None:
    talk(" /etc/x")
    assert asked(server) == [("base", ["/etc/x"])]


def test_stats_are_shown_when_asked(talk: Talk) -> None:
    assert "tokens/s" not in talk("2 + 2?")[0]
    assert "tokens/s" in talk("2 + 2?", stats=True)[0]
    assert "tokens/s" in talk("/stats", "2 + 2?")[0]


@pytest.mark.parametrize("last", ["/quit", "/exit", EOFError])
def test_leaving(talk: Talk, last: str | type[BaseException]) -> None:
    talk(last, AssertionError)


def test_an_interrupted_line_is_dropped(server: Any, talk: Talk) -> None:
    talk(KeyboardInterrupt, "2 + 2?")
    assert asked(server) == [("base", ["2 + 2?"])]


def test_a_failed_answer_leaves_no_trace(server: Any, talk: Talk) -> None:
    server.cards.append({"id": "dying"})
    printed, conversation = talk("/model dying", "2 + 2?")
    assert "the engine died" in printed
    assert conversation.messages == []


def test_an_interrupted_answer_stays_as_far_as_it_came(
    server: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(text: str) -> None:
        if "and on" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr("turret_server.cli.chat_session.write_answer", interrupt)
    server.cards.append({"id": "endless"})
    printed, conversation = talk("/model endless", "2 + 2?")
    assert "stopped" in printed
    assert [message["content"] for message in conversation.messages] == [
        "2 + 2?",
        ANSWER + " and on",
    ]
    assert server.left.wait(10), "the server goes on answering nobody"
