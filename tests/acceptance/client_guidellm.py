"""guidellm: a load of synthetic prompts, and the adapters' own questions from a file."""

import json
import sys
from pathlib import Path
from typing import Any

from acceptance import Session, run, same

_REQUESTS, _STREAMS, _OUTPUT_TOKENS = 8, 2, 16


def benchmark(session: Session, model: str, data: dict[str, Any], count: int) -> dict[str, Any]:
    """Run a closed loop; the one benchmark of the report."""
    report = session.scratch / f"{model}-{data['kind']}.json"
    backend = {
        "kind": "openai_http",
        "target": session.url,
        "model": model,
        "extras": {"body": {"temperature": 0}},
    }
    settings = {
        "--backend": backend,
        "--profile": {"kind": "concurrent", "streams": _STREAMS},
        "--constraint": {"kind": "max_requests", "count": count},
        "--tokenizer": {"kind": "hf_auto", "model": str(session.model_folder)},
        "--data": data,
        "--output": {"kind": "json", "path": str(report)},
    }
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    for flag, value in settings.items():
        command += [flag, json.dumps(value)]
    run(command, cwd=session.scratch, HF_HUB_OFFLINE="1")
    (found,) = json.loads(report.read_text())["benchmarks"]
    return found


def main() -> None:
    session = Session.from_arguments()
    synthetic = {"kind": "synthetic_text", "prompt_tokens": 48, "output_tokens": _OUTPUT_TOKENS}
    for model in (session.base, "sql"):
        with session.check(f"synthetic load on {model}: every request, token and first token"):
            requests = benchmark(session, model, synthetic, _REQUESTS)["requests"]
            counts = {state: len(found or ()) for state, found in requests.items()}
            same((counts["successful"], counts["errored"]), (_REQUESTS, 0))
            for request in requests["successful"]:
                same(request["output_tokens"], _OUTPUT_TOKENS)
                assert request["prompt_tokens"] > 48, request["prompt_tokens"]
                times = request["time_to_first_token_ms"], request["request_latency"] * 1000
                assert 0 < times[0] < times[1], times
    example = session.examples["dates"]
    with session.check("questions from a file, answered by dates"):
        questions = session.scratch / "questions.jsonl"
        questions.write_text(json.dumps({"prompt": example.prompt}) + "\n")
        found = benchmark(session, "dates", {"kind": "json_file", "path": str(questions)}, 1)
        (request,) = found["requests"]["successful"]
        same(request["output"], example.answer)
    session.finish()


if __name__ == "__main__":
    main()
