"""The `llm` command-line tool, told of Turret in extra-openai-models.yaml."""

import json
import sys
from pathlib import Path

from acceptance import QUESTION, Session, run, same

_SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def main() -> None:
    session = Session.from_arguments()
    names = [session.base, *session.examples]
    (session.scratch / "extra-openai-models.yaml").write_text(
        "".join(
            f"- model_id: turret-{name}\n  model_name: {name}\n  api_base: {session.api}\n"
            "  supports_schema: true\n"
            for name in names
        )
    )

    def llm(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *arguments]
        return run(command, LLM_USER_PATH=str(session.scratch), OPENAI_API_KEY="none").strip()

    expected = session.chat(session.base, max_tokens=24).strip()
    base = ("-m", f"turret-{session.base}", "-o", "temperature", "0", "-o", "max_tokens", "24")
    with session.check("models"):
        listed = llm("models")
        assert all(f"turret-{name}" in listed for name in names), listed
    with session.check("prompt, streamed"):
        same(llm(*base, QUESTION), expected)
    with session.check("prompt, not streamed"):
        same(llm(*base, "--no-stream", QUESTION), expected)
    with session.check("adapters"):
        for example in session.examples.values():
            model = f"turret-{example.adapter}"
            same(llm("-m", model, "-o", "temperature", "0", example.prompt), example.answer)
    with session.check("--schema"):
        answer = llm(*base, "--schema", json.dumps(_SCHEMA), "I am happy!")
        assert json.loads(answer)["mood"] in ("good", "bad"), answer
    with session.check("usage in the logs"):
        entries = json.loads(llm("logs", "--json", "-n", "0"))
        tokens = [entry["output_tokens"] for entry in entries]
        assert len(tokens) >= 6, tokens
        assert all(tokens), tokens
    session.finish()


if __name__ == "__main__":
    main()
