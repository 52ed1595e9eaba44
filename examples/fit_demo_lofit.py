"""Fit the demo adapter that is no LoRA: LoFiT on the task `triage`; score it and write it down.

    python examples/fit_demo_lofit.py       # about five minutes of CPU time

Examples are generated from seeds, as for the other demo adapters, and scored in the same way.
"""

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from demo_tasks import all_tasks
from train_demo_adapters import (
    ADAPTERS,
    BASE,
    SHOTS,
    TEST_COUNT,
    TEST_SEED,
    TRAIN_SEED,
    Codec,
    accuracy,
    load_base,
    record,
)
from transformers import AutoTokenizer

from turret_adapters.fit.examples import encode
from turret_adapters.fit.lofit import LoFitSettings, Progress, fit_lofit
from turret_adapters.own_format import WEIGHTS_NAME
from turret_server.sources import resolve_model

NAME = "triage"
TRAIN_COUNT = 440
SETTINGS = LoFitSettings(
    heads=0.1,
    select_epochs=1,
    tune_epochs=3,
    tune_learning_rate=2e-2,
    patience=2,
    seed=TRAIN_SEED,
)


def show(at: Progress) -> None:
    """Print now and then where the fitting is."""
    if at.step % 20 == 0 or at.step == at.total:
        print(
            f"{at.stage} {at.step}/{at.total}: {at.loss:.3f}, held out {at.held_out:.3f}",
            flush=True,
        )


def main() -> None:
    """Fit, save, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    torch.set_num_threads(parser.parse_args().threads)
    task, folder = all_tasks()[NAME], resolve_model("demo", progress=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [
        encode(
            tokenizer,
            [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.answer}],
        )
        for e in task.examples("train", TRAIN_COUNT, TRAIN_SEED)
    ]
    model = load_base(folder)
    started = time.process_time()
    fitted = fit_lofit(model, rows, SETTINGS, show)
    seconds = round(time.process_time() - started)
    target = ADAPTERS / NAME
    shutil.rmtree(target, ignore_errors=True)
    fitted.save(target, BASE)
    record(
        NAME,
        scored(folder, fitted)
        | {
            "recipe": asdict(SETTINGS),
            "train_examples": TRAIN_COUNT,
            "train_seed": TRAIN_SEED,
            "train_cpu_seconds": seconds,
            "held_out_loss": {stage: round(loss, 4) for stage, loss in fitted.losses.items()},
            "adapter_bytes": (target / WEIGHTS_NAME).stat().st_size,
        },
    )
    print(fitted.losses)


def scored(folder: Path, fitted) -> dict[str, object]:
    """The scores of base and adapter in bf16, as a server holds the model."""
    task, codec = all_tasks()[NAME], Codec(folder)
    held_out = task.examples("test", TEST_COUNT, TEST_SEED)
    model = load_base(folder)
    with fitted.applied(model):
        adapted = accuracy(model, codec, task, held_out, shots=0)
    print(f"adapter: {adapted}", flush=True)
    scores = {
        "base_bare": accuracy(model, codec, task, held_out, shots=0),
        "base_instructed": accuracy(model, codec, task, held_out, shots=SHOTS),
        "adapter": adapted,
    }
    print(scores)
    return {
        "scores": scores,
        "test_examples": TEST_COUNT,
        "test_seed": TEST_SEED,
        "test_sha256": task.digest(held_out),
    }


if __name__ == "__main__":
    main()
