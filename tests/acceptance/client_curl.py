"""curl: the README's own lines, a stream, and the operator's routes."""

import json
import re
from pathlib import Path

from acceptance import QUESTION, Session, run, same

_README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_DOCUMENTED_URL = "http://127.0.0.1:8000"


def shell(command: str) -> str:
    return run(["bash", "-c", command])


def readme_commands() -> list[str]:
    """Every curl command of the README, which may span lines."""
    blocks = (block for block in _BLOCK.findall(_README.read_text()) if "curl " in block)
    return [
        command
        for block in blocks
        for command in re.split(r"^(?=curl )", block, flags=re.MULTILINE)
        if command.startswith("curl ")
    ]


def main() -> None:
    session = Session.from_arguments()
    commands = readme_commands()
    with session.check(f"the README's {len(commands)} commands"):
        assert commands, "the README shows no curl command"
        for command in commands:
            assert _DOCUMENTED_URL in command, command
            answer = json.loads(shell(command.replace(_DOCUMENTED_URL, session.url)))
            text = answer["choices"][0]["message"]["content"]
            same(_loose(text), _loose(session.examples[answer["model"]].answer))
    with session.check("a stream"):
        body = {"model": session.base, "messages": [{"role": "user", "content": QUESTION}]}
        body |= {"temperature": 0, "max_tokens": 24, "stream": True}
        written = shell(f"curl -sN {session.api}/chat/completions --json '{json.dumps(body)}'")
        events = written.split("\n\n")
        same(events[-2:], ["data: [DONE]", ""])
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        same(text, session.chat(session.base, max_tokens=24))
    with session.check("/health, /v1/models, /metrics"):
        same(json.loads(shell(f"curl -sf {session.url}/health"))["status"], "ok")
        models = json.loads(shell(f"curl -sf {session.api}/models"))["data"]
        assert {session.base, *session.examples} <= {model["id"] for model in models}, models
        assert "# TYPE " in shell(f"curl -sf {session.url}/metrics")
    with session.check("a body that is not JSON"):
        command = f"curl -s -w '\\n%{{http_code}}' {session.api}/completions --json '{{'"
        body, _, status = shell(command).rpartition("\n")
        same(status, "400")
        assert json.loads(body)["error"]["message"]
    session.finish()


def _loose(text: str) -> object:
    """JSON by its value: the README's question differs from the example's in a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
