"""An adapter fused with the base that it came from: what each scores alone, and both together.

    turret serve demo &
    python examples/fuse_demo_adapters.py --json bench/results/fusion_effect.json

Most mistakes of the adapter `order-json` are words that its training never showed it, spelt wrong.
The base, shown three examples, knows nothing of the format but copies words. So half the logits of
the base with its prompt are added to those of the adapter with its own. The weight was chosen on
180 other examples of the same split; scores are of greedy answers.
"""

import argparse
import asyncio
import json
from math import sqrt
from typing import Any

from demo_tasks import Example, Task, all_tasks
from openai import AsyncOpenAI

WEIGHT = 0.5  # of the base; 0.35 and 0.65 did as well within two points
SHOTS = 3  # as in train_demo_adapters.py
# Not the 200 that the adapter was scored on: a few points need more to be told from chance.
TEST_COUNT, TEST_SEED = 600, 3
TASK = "order-json"


def ways(task: Task, prompt: str, base: str) -> dict[str, dict[str, Any]]:
    """The same question to the adapter, to the base, and to both."""
    bare, shown = (task.conversation(prompt, shots=shots) for shots in (0, SHOTS))
    fusion = {
        "method": "sum",
        "experts": [{"model": base, "messages": shown}],
        "weights": [1.0, WEIGHT],
    }
    return {
        "adapter": {"model": task.name, "messages": bare},
        "base": {"model": base, "messages": shown},
        "fused": {"model": task.name, "messages": bare, "extra_body": {"fusion": fusion}},
    }


async def answers(client: AsyncOpenAI, task: Task, asked: list[dict[str, Any]]) -> list[str]:
    """The greedy answers, in order; a few dozen run at once."""
    at_once = asyncio.Semaphore(32)

    async def answer(fields: dict[str, Any]) -> str:
        async with at_once:
            done = await client.chat.completions.create(
                temperature=0, max_tokens=task.max_new_tokens, **fields
            )
        return done.choices[0].message.content or ""

    return await asyncio.gather(*map(answer, asked))


def report(right: dict[str, list[bool]], task: Task, examples: list[Example]) -> dict[str, Any]:
    """Scores; and how often one is right where the other is wrong, for what chance would do."""
    won = sum(f and not a for f, a in zip(right["fused"], right["adapter"], strict=True))
    lost = sum(a and not f for f, a in zip(right["fused"], right["adapter"], strict=True))
    return {
        "task": task.name,
        "weight": WEIGHT,
        "examples": len(examples),
        "sha256": task.digest(examples),
        "scores": {name: sum(found) / len(found) for name, found in right.items()},
        "fused_right_adapter_wrong": won,
        "adapter_right_fused_wrong": lost,
        "mcnemar_z": (won - lost) / sqrt(max(won + lost, 1)),
    }


async def measure(url: str, count: int, seed: int) -> dict[str, Any]:
    """Ask all three."""
    task = all_tasks()[TASK]
    examples = task.examples("test", count, seed)
    right: dict[str, list[bool]] = {}
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:
        base = (await client.models.list()).data[0].id
        asked = [ways(task, example.prompt, base) for example in examples]
        for name in asked[0]:
            found = await answers(client, task, [fields[name] for fields in asked])
            right[name] = [task.score(text, e) for text, e in zip(found, examples, strict=True)]
            print(f"{name}: {sum(right[name])} of {count} right", flush=True)
    return {"seed": seed, **report(right, task, examples)}


def main() -> None:
    """Print the scores, and write them with --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=TEST_COUNT, help="examples")
    parser.add_argument("--seed", type=int, default=TEST_SEED, help="of the examples")
    parser.add_argument("--json", help="write the scores to this file")
    args = parser.parse_args()
    result = asyncio.run(measure(args.url, args.count, args.seed))
    print(json.dumps(result, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
