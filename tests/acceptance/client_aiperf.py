"""aiperf with the model's tokenizer folder: a streamed load on the base and on an adapter."""

import json
import sys
from pathlib import Path
from typing import Any

from acceptance import Session, run, same

_REQUESTS, _OUTPUT_TOKENS = 8, 16


def profile(session: Session, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a closed loop; the summary, and what it recorded per request."""
    folder = session.scratch / model
    command = [
        *(str(Path(sys.executable).with_name("aiperf")), "profile", "--model", model),
        *("--url", session.url, "--endpoint-type", "chat", "--streaming"),
        *("--tokenizer", str(session.model_folder), "--output-artifact-dir", str(folder)),
        *("--request-count", str(_REQUESTS), "--concurrency", "2", "--random-seed", "7"),
        *("--isl", "48", "--osl", str(_OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true"),
        *("--extra-inputs", "temperature:0", "--use-server-token-count"),
        *("--num-dataset-entries", str(_REQUESTS), "--ui", "none", "--no-gpu-telemetry"),
        *("--workers-max", "1", "--record-processors", "1", "--export-level", "records"),
    ]
    run(command, cwd=session.scratch)
    (summary,) = folder.rglob("profile_export_aiperf.json")
    (records,) = folder.rglob("profile_export.jsonl")
    return (
        json.loads(summary.read_text()),
        [json.loads(line) for line in records.read_text().splitlines()],
    )


def main() -> None:
    session = Session.from_arguments()
    for model in (session.base, "sql"):
        with session.check(f"streamed load on {model}: every request, token and first token"):
            summary, records = profile(session, model)
            same(summary["request_count"]["avg"], _REQUESTS)
            assert not (summary.get("error_request_count") or {}).get("avg"), summary
            same(len(records), _REQUESTS)
            for record in records:
                metrics = {name: found["value"] for name, found in record["metrics"].items()}
                same(metrics["output_sequence_length"], _OUTPUT_TOKENS)
                times = metrics["time_to_first_token"], metrics["request_latency"]
                assert 0 < times[0] < times[1], times
    session.finish()


if __name__ == "__main__":
    main()
