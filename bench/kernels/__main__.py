"""Times of GPU kernels, beside what memory and arithmetic allow, what was predicted, and peers.

    python -m bench.kernels --op low_rank --output bench/results/kernels.json

Where there is no GPU the predictions for three are printed, with their arithmetic, and nothing is
measured. An op is a file here (see case.py). A case is one piece of work on many sets of operands,
together larger than the L2 cache where they are not tiny: in a server too, an adapter's rows come
from memory. All sets are recorded in one CUDA graph; the time is the median of its replays, by
call. So it has the gaps between kernels in it, and not Python.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bench.kernels.peers import PACKAGES
from bench.kernels.table import OPS, cases, measured_row, predictions
from bench.kernels.timing import ceilings, measure


def main() -> None:
    """Print a line per case; JSON with --output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(predictions(args.op))
        print("Nothing was measured: torch finds no GPU here. These are predictions.")
        return
    torch.manual_seed(0)
    limits, rows = ceilings(), []
    print({name: round(value, 2) for name, value in asdict(limits).items()})
    for op in args.op:  # one case after another: their operands together would not fit
        for case in cases(op):
            row: dict[str, Any] = {"op": op, **measure(case, limits)}
            rows.append(row)
            print(measured_row(row), flush=True)
    if args.output:
        device = torch.cuda.get_device_name()
        names = ("torch", "triton", *PACKAGES)
        versions = {d.name: d.version for d in metadata.distributions() if d.name in names}
        found = {"device": device, "versions": versions, "ceilings": asdict(limits), "rows": rows}
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
