"""Train the demo adapters with PEFT, score them against the base model, and write both down.

    python examples/train_demo_adapters.py            # all, about 20 minutes on two CPU cores
    python examples/train_demo_adapters.py --only sql

Every example is generated from a seed (`demo_tasks/`). Scores are greedy answers to held-out
examples, whose names and values training never sees. The base model is asked twice: with the bare
prompt that the adapter gets, and with an instruction and three worked examples: the fair fight.
"""

import argparse
import json
import platform
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from demo_tasks import Example, Task, all_tasks
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from turret_server.sources import resolve_model

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "adapters/turret_adapters/demo"
SCORES = ROOT / "examples/demo_scores.json"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"

TRAIN_SEED, TEST_SEED = 1, 2
TEST_COUNT = 200
SHOTS = 3  # worked examples that the base model is shown
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one adapter is shaped and trained. Shapes differ on purpose: servers must mix them."""

    targets: list[str]
    rank: int
    alpha: int
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    steps: int
    batch: int = 8
    learning_rate: float = 2e-3


RECIPES = {
    "order-json": Recipe(targets=ATTENTION, rank=8, alpha=16, steps=360),
    "sql": Recipe(targets=ATTENTION + MLP, rank=3, alpha=6, steps=280),
    "dates": Recipe(
        targets=["up_proj", "down_proj"],
        rank=4,
        alpha=8,
        rslora=True,
        # Late layers write the answer: twice the rank there helps more than a bit everywhere.
        rank_pattern={r"layers\.2\d\.mlp\.(up|down)_proj": 8},
        steps=240,
    ),
}


class Codec:
    """Text to token ids and back, with the model's own chat template."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.pad_id: int = self._tokenizer.pad_token_id

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation, up to where the assistant starts to write."""
        written = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self._tokenizer(written, add_special_tokens=False).input_ids

    def answer(self, text: str) -> list[int]:
        """Return the ids of an assistant message, with the token that ends it."""
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        return [*ids, self._tokenizer.eos_token_id]

    def text(self, ids: torch.Tensor) -> str:
        """Return the text of `ids` without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def load_base(folder: Path) -> transformers.PreTrainedModel:
    """Load the base model in bf16, as a server holds it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def tokenized(codec: Codec, task: Task, examples: list[Example]) -> list[Row]:
    """Return the token ids of each example's prompt and answer."""
    return [
        (codec.prompt(task.conversation(e.prompt, shots=0)), codec.answer(e.answer))
        for e in examples
    ]


def batches(rows: list[Row], size: int, rng: random.Random) -> list[list[Row]]:
    """Shuffle into batches of rows of like length, so that little is padding."""
    rng.shuffle(rows)
    grouped: list[list[Row]] = []
    for start in range(0, len(rows), 8 * size):
        window = sorted(rows[start : start + 8 * size], key=lambda row: len(row[0]) + len(row[1]))
        grouped += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(grouped)
    return grouped


def loss_of(model: PeftModel, codec: Codec, batch: list[Row]) -> torch.Tensor:
    """Return the mean cross-entropy over the tokens of the answers (and of nothing else)."""
    rows = [torch.tensor(prompt + answer) for prompt, answer in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=codec.pad_id)  # [B, T]
    place = torch.arange(ids.shape[1])[None]
    first = torch.tensor([len(prompt) for prompt, _ in batch])[:, None]
    length = torch.tensor([len(r) for r in rows])[:, None]
    # Position t predicts token t + 1. Causal attention never looks right, at the padding.
    predicts = (place >= first - 1) & (place < length - 1)
    causal: Any = model.get_base_model()
    hidden = causal.model(input_ids=ids).last_hidden_state[predicts]  # [answer tokens, H]
    return cross_entropy(causal.lm_head(hidden).float(), ids.roll(-1, dims=1)[predicts])


def train(task: Task, recipe: Recipe, folder: Path, codec: Codec) -> PeftModel:
    """Train one adapter; every example is seen once."""
    torch.manual_seed(TRAIN_SEED)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=recipe.targets,
        use_rslora=recipe.rslora,
        rank_pattern=recipe.rank_pattern,
    )
    model = get_peft_model(load_base(folder), config)  # bf16 base, fp32 adapter
    examples = task.examples("train", recipe.steps * recipe.batch, TRAIN_SEED)
    order = batches(tokenized(codec, task, examples), recipe.batch, random.Random(TRAIN_SEED))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    started = time.monotonic()
    for step, batch in enumerate(order):
        loss = loss_of(model, codec, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 19:
            spent = time.monotonic() - started
            print(
                f"{task.name}: step {step + 1}, loss {loss.item():.4f}, {spent:.0f} s", flush=True
            )
    return model


def save(model: PeftModel, folder: Path) -> None:
    """Write an ordinary PEFT folder, in bf16 and without this machine's paths."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.peft_config["default"].base_model_name_or_path = BASE
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; one card serves all
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # a set in PEFT: in another order every time
    path.write_text(json.dumps(config, indent=2) + "\n")


@torch.inference_mode()
def accuracy(
    model: Any,
    codec: Codec,
    task: Task,
    examples: list[Example],
    *,
    shots: int,
) -> float:
    """Return the share of greedy answers that are right."""
    prompts = [codec.prompt(task.conversation(e.prompt, shots=shots)) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    right = 0
    for start in range(0, len(order), 50):
        chosen = order[start : start + 50]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor(
            [[codec.pad_id] * (longest - len(prompts[i])) + prompts[i] for i in chosen]
        )
        mask = torch.tensor(
            [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
        )
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=task.max_new_tokens,
            do_sample=False,
        )
        outputs = [codec.text(row) for row in out[:, longest:]]
        right += sum(task.score(text, examples[i]) for text, i in zip(outputs, chosen, strict=True))
    return right / len(examples)


def score(task: Task, folder: Path, codec: Codec) -> dict[str, object]:
    """Score the base model and the adapter on disk, loaded as anybody would."""
    held_out = task.examples("test", TEST_COUNT, TEST_SEED)
    base = load_base(folder)
    scores = {
        "base_bare": accuracy(base, codec, task, held_out, shots=0),
        "base_instructed": accuracy(base, codec, task, held_out, shots=SHOTS),
    }
    path = ADAPTERS / task.name
    adapted = PeftModel.from_pretrained(base, path, autocast_adapter_dtype=False).eval()
    scores["adapter"] = accuracy(adapted, codec, task, held_out, shots=0)
    print(f"{task.name}: {scores}", flush=True)
    return {
        "scores": scores,
        "test_examples": TEST_COUNT,
        "test_seed": TEST_SEED,
        "test_sha256": task.digest(held_out),
        "adapter_bytes": (path / "adapter_model.safetensors").stat().st_size,
    }


def record(name: str, result: dict[str, object]) -> None:
    """Put what is known anew of one adapter into the score file, beside the rest."""
    results = json.loads(SCORES.read_text())["adapters"] if SCORES.exists() else {}
    report = {
        "base": BASE,
        "measure": "share of held-out examples answered right, greedy, bf16",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "adapters": results | {name: results.get(name, {}) | result},
    }
    SCORES.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Train and score what the command line asks for."""
    tasks = all_tasks()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--score-only", action="store_true", help="score what is on disk")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = resolve_model("demo", progress=True)
    codec = Codec(folder)
    for name in args.only:
        if not args.score_only:
            started = time.process_time()
            recipe = RECIPES[name]
            save(train(tasks[name], recipe, folder, codec), ADAPTERS / name)
            trained = {
                "recipe": asdict(recipe),
                "train_examples": recipe.steps * recipe.batch,
                "train_seed": TRAIN_SEED,
                "train_cpu_seconds": round(time.process_time() - started),
            }
            record(name, trained)
        record(name, score(tasks[name], folder, codec))


if __name__ == "__main__":
    main()
