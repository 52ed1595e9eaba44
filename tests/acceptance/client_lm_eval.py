"""lm-eval's `local-completions`: multiple choice and perplexity, for the base and an adapter.

Tokens come from Turret's /tokenizer_info and /tokenize; nothing is fetched from a hub. Every
log-likelihood is then compared with that of transformers and PEFT (lm_eval_reference.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

from acceptance import Session, run, same

_HERE = Path(__file__).parent
_TASKS = ("turret_facts", "turret_dates", "turret_prose")
_ADAPTER = "dates"
# Per token; both sides compute in float32.
_TOLERANCE = 1e-4


def evaluate(session: Session, model: str) -> dict[str, Any]:
    """Run the harness; its metrics per task, and the requests with the answers."""
    output = session.scratch / model
    arguments = f"model={model},base_url={session.api}/completions,num_concurrent=4,max_retries=1"
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", arguments, "--tasks", *_TASKS, "--include_path", "lm_eval_tasks"),
        *("--output_path", str(output), "--log_samples"),
    ]
    # The tasks name their data relative to this folder.
    home = str(session.scratch)
    run(command, cwd=_HERE, HF_HOME=home, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    (results,) = output.rglob("results_*.json")
    samples = {
        task: [json.loads(line) for line in next(output.rglob(f"samples_{task}_*")).open()]
        for task in _TASKS
    }
    return {"metrics": json.loads(results.read_text())["results"], "samples": samples}


def requests_of(sample: dict[str, Any]) -> list[tuple[list[str], list[Any]]]:
    """(arguments, answer) of a document's requests, as the harness logs them."""
    arguments = [list(one.values()) for one in sample["arguments"].values()]
    answers = [one[0] for one in sample["resps"]]
    return list(zip(arguments, answers, strict=True))


def compare(session: Session, model: str, samples: dict[str, Any]) -> int:
    """Hold every answer against transformers; how many there were."""
    asked = [request for task in _TASKS for s in samples[task] for request in requests_of(s)]
    pairs, truth = session.scratch / f"{model}.pairs", session.scratch / f"{model}.truth"
    pairs.write_text(json.dumps([arguments for arguments, _ in asked]))
    adapter = [str(session.adapter_folders[model])] if model != session.base else []
    reference = str(_HERE / "lm_eval_reference.py")
    run([session.python, reference, str(pairs), str(truth), str(session.model_folder), *adapter])
    worst = 0.0
    expected = json.loads(truth.read_text())
    for (arguments, answer), (logprob, is_greedy, num_tokens) in zip(asked, expected, strict=True):
        # A rolling request answers with the number alone.
        got = answer if isinstance(answer, list) else [answer, is_greedy]
        error = abs(float(got[0]) - logprob) / num_tokens
        assert error < _TOLERANCE, f"{got[0]} for {arguments}, transformers says {logprob}"
        assert str(got[1]) == str(is_greedy), f"greedy is {got[1]} for {arguments}"
        worst = max(worst, error)
    print(f"{model}: {len(asked)} log-likelihoods, largest error {worst:.1e} per token")
    return len(asked)


def main() -> None:
    session = Session.from_arguments()
    metrics: dict[str, Any] = {}
    for model in (session.base, _ADAPTER):
        results: dict[str, Any] = {}
        with session.check(f"multiple choice and perplexity of {model}"):
            results = evaluate(session, model)
            metrics[model] = results["metrics"]
            assert metrics[model]["turret_prose"]["word_perplexity,none"] > 1
        with session.check(f"log-likelihoods of {model} are those of transformers"):
            # Ten facts and twelve dates with four choices each, four texts.
            same(compare(session, model, results["samples"]), 4 * (10 + 12) + 4)
    with session.check("the adapter scores higher on its task"):
        scores = {model: found["turret_dates"]["acc,none"] for model, found in metrics.items()}
        assert scores[_ADAPTER] >= scores[session.base] + 0.25, scores
    session.finish()


if __name__ == "__main__":
    main()
