"""A scorer for the adapter `order-json`, and what reranking by it gains.

    python examples/rerank_demo_adapters.py train judge
    turret serve demo --scorer judge=judge &
    python examples/rerank_demo_adapters.py measure --json bench/results/rerank.json

The scorer is the demo model with a linear head on its last token. The head learns from orders of
the adapter's training split: their right answers shall score higher than the same answers with one
value spoilt, as the adapter spoils them (a pairwise logistic loss). The test split has other words.
"""

import argparse
import asyncio
import json
import random
import shutil
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from demo_tasks import Example, Task, all_tasks
from openai import AsyncOpenAI
from safetensors.torch import load_file, save_file

from turret_server.demo import demo_model
from turret_server.models.classifier import Classifier
from turret_server.scorer.text import Instruction, scorer_text

TASK = "order-json"
TEMPERATURE, CANDIDATES = 0.7, 8
TRAIN_COUNT, TRAIN_SEED = 300, 11
TEST_COUNT, TEST_SEED = 120, 3
PENALTIES = (0.01, 0.1, 1.0, 10.0)
FOLDS = 5


async def ask(url: str, examples: list[Example], task: Task, **fields: Any) -> list[Any]:
    """One chat per order, a few dozen at once."""
    at_once = asyncio.Semaphore(8)

    async def one(client: AsyncOpenAI, index: int, example: Example) -> Any:
        async with at_once:
            return await client.chat.completions.create(
                model=TASK,
                messages=task.conversation(example.prompt, shots=0),  # type: ignore[arg-type]
                max_tokens=task.max_new_tokens,
                **{"temperature": TEMPERATURE, "seed": 1000 * index, **fields},
            )

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600) as client:
        return await asyncio.gather(*(one(client, i, e) for i, e in enumerate(examples)))


def write_model(folder: Path, head: torch.Tensor) -> None:
    """The demo model with a head [labels, hidden] on its last token."""
    demo = demo_model(progress=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (demo / name).is_file():
            shutil.copy(demo / name, folder / name)
    config = json.loads((demo / "config.json").read_bytes())
    labels = {str(i): f"LABEL_{i}" for i in range(len(head))}
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": labels}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = {k: t for path in demo.glob("*.safetensors") for k, t in load_file(path).items()}
    tensors.pop("lm_head.weight", None)
    save_file(tensors | {"score.weight": head.contiguous()}, folder / "model.safetensors")


def features(folder: Path, pairs: list[tuple[str, str, str]]) -> torch.Tensor:
    """Of (prompt, right, wrong): how the last token's state differs, float32 [pairs, hidden]."""
    hidden = json.loads((demo_model(progress=False) / "config.json").read_bytes())["hidden_size"]
    write_model(folder, torch.eye(hidden, dtype=torch.bfloat16))
    model = Classifier.load(folder, torch.bfloat16, torch.device("cpu"), 1024, "0")
    text = scorer_text(folder, 1024, model.vocab_size, is_encoder=False)
    found = []
    for prompt, *answers in pairs:
        rows = text.rows(Instruction.of_text(prompt), answers)
        right, wrong = model.logits([row.ids for row in rows], [])
        found.append(right - wrong)
    return torch.stack(found)


def spoil(answer: str, rng: random.Random) -> str:
    """The answer with one value wrong; most of the adapter's mistakes are words spelt wrong."""
    order = json.loads(answer)
    words = [key for key in ("item", "city") if order[key]]
    if rng.random() < 0.8:
        key = rng.choice(words)
        word = order[key]
        at, length = rng.randrange(1, len(word)), rng.choice([0, 1, 1, 2, 3])
        letters = "".join(rng.choice("aeiourstln") for _ in range(rng.choice([0, 1, 1, 2])))
        spoilt = word[:at] + letters + word[at + length :]
        order[key] = spoilt if spoilt != word else word + "a"
    else:
        key = rng.choice(["quantity", "size", "color", "express"])
        wrong = {
            "quantity": order["quantity"] + rng.choice([1, 2, 10]),
            "size": rng.choice([s for s in (None, "S", "M", "L", "XL") if s != order["size"]]),
            "color": None if order["color"] else "red",
            "express": not order["express"],
        }
        order[key] = wrong[key]
    return json.dumps(order)


def fit(differences: torch.Tensor, penalty: float) -> torch.Tensor:
    """The direction [hidden] along which right answers lie above wrong ones."""
    scale = differences.std(0) + 1e-6
    weight = torch.zeros(differences.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        margins = differences / scale @ weight
        loss = torch.nn.functional.softplus(-margins).mean() + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (weight / scale).detach()


def train(folder: Path) -> None:
    """Fit the head, write the scorer."""
    rng = random.Random(TRAIN_SEED)
    examples = all_tasks()[TASK].examples("train", TRAIN_COUNT, TRAIN_SEED)
    pairs = [(e.prompt, e.answer, spoil(e.answer, rng)) for e in examples]
    differences = features(folder, pairs)
    place = torch.arange(len(pairs)) % FOLDS

    def held_out(penalty: float) -> float:
        right = 0
        for fold in range(FOLDS):
            weight = fit(differences[place != fold], penalty)
            right += int((differences[place == fold] @ weight > 0).sum())
        return right / len(pairs)

    quality = {penalty: held_out(penalty) for penalty in PENALTIES}
    print(f"right of held-out pairs, by penalty: {quality}", flush=True)
    best = max(quality, key=quality.__getitem__)
    write_model(folder, fit(differences, best)[None].to(torch.bfloat16))


async def measure(url: str) -> dict[str, Any]:
    """The first of eight answers, the likeliest, the one that scores best, and any of them."""
    task = all_tasks()[TASK]
    examples = task.examples("test", TEST_COUNT, TEST_SEED)
    rerank = {"scorer": "judge", "candidates": CANDIDATES, "return_scores": True}
    answers = await ask(
        url, examples, task, n=CANDIDATES, logprobs=True, extra_body={"rerank": rerank}
    )
    right: dict[str, list[bool]] = {"one": [], "likeliest": [], "scorer": [], "any": []}
    for answer, example in zip(answers, examples, strict=True):
        drawn = sorted(answer.choices, key=lambda choice: choice.rerank["candidate"])
        good = [task.score(choice.message.content or "", example) for choice in drawn]
        means = [fmean(t.logprob for t in choice.logprobs.content) for choice in drawn]
        scores = [choice.rerank["score"] for choice in drawn]
        right["one"].append(good[0])
        right["likeliest"].append(good[means.index(max(means))])
        right["scorer"].append(good[scores.index(max(scores))])
        right["any"].append(any(good))
    won = sum(s and not b for s, b in zip(right["scorer"], right["likeliest"], strict=True))
    lost = sum(b and not s for s, b in zip(right["scorer"], right["likeliest"], strict=True))
    return {
        "task": TASK,
        "examples": TEST_COUNT,
        "sha256": task.digest(examples),
        "temperature": TEMPERATURE,
        "candidates": CANDIDATES,
        "scores": {name: sum(found) / TEST_COUNT for name, found in right.items()},
        "scorer_right_likeliest_wrong": won,
        "likeliest_right_scorer_wrong": lost,
        "mcnemar_z": (won - lost) / sqrt(max(won + lost, 1)),
    }


def main() -> None:
    """`train FOLDER` or `measure`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["train", "measure"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("judge"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--json", help="write the scores to this file")
    args = parser.parse_args()
    if args.step == "train":
        train(args.folder)
        return
    result = asyncio.run(measure(args.url))
    print(json.dumps(result, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
