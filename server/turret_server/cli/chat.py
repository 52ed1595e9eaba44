"""`turret chat`: talk to a running server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turret_server.cli.options import DEFAULT_URL, ApiKeyOption, UrlOption
from turret_server.errors import BadRequest

if TYPE_CHECKING:
    import asyncio

    from turret_server.cli.remote import Remote

_ANSWER = "Answers"


def chat(
    url: UrlOption = DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Base, adapter, recipe, or a stack such as a:0.7+b. \\[default: the base]",
            show_default=False,
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    system: Annotated[
        str | None, typer.Option(help="The system message.", rich_help_panel=_ANSWER)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="0 is greedy.", rich_help_panel=_ANSWER),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Sample from the likeliest tokens of this probability.",
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest answer. \\[default: what the context leaves]",
            show_default=False,
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same question, same answer.", rich_help_panel=_ANSWER),
    ] = None,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            help="After each answer: tokens per second, and time to the first.",
            rich_help_panel=_ANSWER,
        ),
    ] = False,
) -> None:
    """Talk to a running server, and switch adapters while you do.

    In the conversation:
      [bold]/adapter sql[/]         who answers next: an adapter, a recipe, or a stack
                           such as formal:0.7+sql; Tab completes names
      [bold]/adapters[/]            what the server offers
      [bold]/system TEXT[/]         set the system message
      [bold]/reset[/]               forget what was said
      [bold]/save FILE[/]           write the conversation as the body of a request
      [bold]/help[/]                all commands
    Ctrl-C stops an answer and not the program; Ctrl-D leaves.

    From a pipe, all of the input is one question:
      echo "May 3rd, 2024" | turret chat --model dates
    """
    import asyncio

    from turret_server.cli.conversation import Conversation
    from turret_server.cli.remote import Remote

    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    sampling = {name: value for name, value in given.items() if value is not None}
    remote = Remote(url, api_key)
    with asyncio.Runner() as runner:
        runner.run(remote.__aenter__())
        try:
            if sys.stdin.isatty():
                from turret_server.cli.chat_session import ChatSession

                models = runner.run(remote.models())
                conversation = Conversation(model or models[0]["id"], system, sampling)
                ChatSession(runner, remote, conversation, models, stats=stats).run()
            else:
                question = _piped_question()
                name = model or runner.run(remote.models())[0]["id"]
                body = Conversation(name, system, sampling).body(question)
                _answer_once(runner, remote, body, stats=stats)
        finally:
            runner.run(remote.__aexit__())


def _piped_question() -> str:
    # Shells end what they pipe in a newline that nobody asks about, and models answer it.
    question = sys.stdin.read().rstrip("\r\n")
    if not question.strip():
        raise BadRequest(
            "there is no question",
            "the standard input is neither a terminal nor holds a text",
            "Pipe a question in, or start `turret chat` on a terminal.",
        )
    return question


def _answer_once(
    runner: asyncio.Runner, remote: Remote, body: dict[str, Any], *, stats: bool
) -> None:
    """Answer one question: the text alone on stdout, anything else on stderr."""
    from rich.console import Console

    from turret_server.cli.conversation import Reply
    from turret_server.cli.terminal import print_end, write_answer

    reply = Reply()
    try:
        runner.run(reply.receive(remote, body, write_answer))
    finally:
        if reply.text and not reply.text.endswith("\n"):
            write_answer("\n")
    print_end(Console(stderr=True), reply, stats=stats)
