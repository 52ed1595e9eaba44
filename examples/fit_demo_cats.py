"""Fit the demo adapter that leaves neurons out: CATS thresholds; measure them and write both down.

    python examples/fit_demo_cats.py        # about ten minutes of CPU time

The text is Python's own language reference, which every installation carries as `pydoc_data`;
one window of 512 tokens in ten only judges the result.
"""

import argparse
import hashlib
import json
import platform
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from train_demo_adapters import ADAPTERS, BASE, record
from transformers import AutoModelForCausalLM, AutoTokenizer

from turret_adapters.fit.cats import fit_cats
from turret_adapters.fit.text import read_windows
from turret_adapters.own_format import CONFIG_NAME
from turret_server.sources import resolve_model

NAME = "cats-50"
SPARSITY = 0.5
MAX_TOKENS = 100_000


def main() -> None:
    """Fit, save, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    torch.set_num_threads(parser.parse_args().threads)
    folder = resolve_model("demo", progress=True)
    text = "\n\n".join(body.strip() for _, body in sorted(topics.items())) + "\n"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "text.txt"
        path.write_text(text, encoding="utf-8")
        windows = read_windows(AutoTokenizer.from_pretrained(folder), path, max_tokens=MAX_TOKENS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    fitted = fit_cats(model, windows, SPARSITY, lambda stage: print(".", end="", flush=True))
    target = ADAPTERS / NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / CONFIG_NAME).write_text(json.dumps(fitted.config(BASE), indent=2) + "\n")
    result = {
        "measure": "perplexity on held-out text, float32",
        "scores": {
            "base": round(fitted.perplexity_before, 3),
            "adapter": round(fitted.perplexity_after, 3),
        },
        "recipe": {"sparsity": SPARSITY, "max_tokens": MAX_TOKENS},
        "dead": {
            "least": round(min(fitted.sparsity), 3),
            "most": round(max(fitted.sparsity), 3),
            "two_tokens": round(sum(fitted.shared) / len(fitted.shared), 3),
        },
        "fit_tokens": windows.num_fitted,
        "held_out_tokens": windows.num_held_out,
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "adapter_bytes": (target / CONFIG_NAME).stat().st_size,
    }
    record(NAME, result)
    print(f"\n{json.dumps(result, indent=2)}")


if __name__ == "__main__":
    main()
