"""A thousand adapters, sixteen places: what a long tail of fine-tunes costs.

    python bench/many_adapters.py MODEL --folder ADAPTERS --count 1000

Writes random LoRA adapters (rank 8, all linears; about 5 MB each for a 135M model) where they are
missing, then starts servers one after the other and sends each the same closed loop:

- *few*: as many adapters as there are places, all resident, Zipf popularity over them;
- *resident*: every adapter on a shelf (`--adapter-dir`), places for all of them, the same requests
  as *many*, sent twice: the second time nothing is loaded. A step holds as many different adapters
  as in *many*, so what is left between the two is the swapping;
- *many*: every adapter on the shelf, the same number of places as *few*, Zipf over all.

In the last server, with other streams in the background, probes then ask in turn for adapters
that nobody asked for before (read, compiled and made resident by that request) and for one that is
warm. Prints the ratios, and writes everything as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from deployment import Launch
from make_adapters import make_adapter
from process import free_port, running

from turret_server.loadtest.config import LoadConfig, Target
from turret_server.loadtest.driver import LoadRun, run_load
from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.popularity import Popularity
from turret_server.loadtest.stats import distribution

_RANK = 8
_PROBE_TOKENS = 8


@contextmanager
def serving(args: argparse.Namespace, places: int, *flags: str) -> Iterator[str]:
    """A Turret with so many places; its address."""
    port = free_port()
    argv = [str(Path(sys.executable).with_name("turret")), "serve", str(args.model)]
    argv += ["--port", str(port), "--served-name", "base", "--log-level", "warning"]
    argv += ["--max-resident-adapters", str(places), *flags]
    argv += ["--adapter-rank-rows", str(_RANK * places)]
    argv += ["--host-adapter-gib", str(args.host_gib), "--max-model-len", "2048"]
    with running(Launch(argv=argv, ready_path="/ready"), port, args.folder / "server.log"):
        yield f"http://127.0.0.1:{port}"


def load(args: argparse.Namespace, url: str, names: list[str]) -> LoadRun:
    """The closed loop over `names`, most popular first."""
    return asyncio.run(
        run_load(
            LoadConfig(
                url=url,
                targets=tuple(Target(model=name) for name in names),
                popularity=Popularity("zipf", args.zipf),
                concurrency=args.workers,
                num_requests=args.requests,
                num_warmup=2 * args.places,
                seed=args.seed,
            )
        )
    )


def numbers(run: LoadRun) -> dict[str, Any]:
    """What a phase gave."""
    done = [record for record in run.records if record.error is None]
    return {
        "output_tokens_per_s": round(sum(r.num_output_tokens for r in done) / run.duration_s, 1),
        "ttft_ms": distribution(r.ttft_s for r in done if r.ttft_s is not None),
        "itl_ms": distribution(gap for r in done for gap in r.gaps_s),
        "requests": len(run.records),
        "errors": len(run.records) - len(done),
        "adapters_asked_for": len({r.model for r in done}),
    }


async def probe(args: argparse.Namespace, url: str, cold: list[str]) -> dict[str, Any]:
    """First tokens of adapters that were never asked for, and of a warm one, in turn."""

    async def ask(name: str, seed: int) -> float:
        config = LoadConfig(
            url=url,
            targets=(Target(model=name),),
            concurrency=1,
            num_requests=1,
            output_lengths=Lengths("fixed", _PROBE_TOKENS),
            seed=seed,
        )
        (record,) = (await run_load(config)).records
        if record.error is not None or record.ttft_s is None:
            raise RuntimeError(f"the probe of {name} failed: {record.error}")
        return record.ttft_s

    others = asyncio.create_task(
        run_load(
            LoadConfig(
                url=url,
                targets=(Target(model="base"),),
                concurrency=4,
                duration_s=60.0,
                seed=args.seed,
            )
        )
    )
    await asyncio.sleep(2)
    first: dict[str, list[float]] = {"warm": [], "cold": []}
    warm = "w0"
    await ask(warm, 0)
    for number, name in enumerate(cold):
        if others.done():
            break
        first["warm"].append(await ask(warm, 2 * number))
        first["cold"].append(await ask(name, 2 * number + 1))
        await asyncio.sleep(0.1)
    await others
    found: dict[str, Any] = {f"{kind}_ttft_ms": distribution(x) for kind, x in first.items()}
    for p in ("p50", "p95"):
        ratio = found["cold_ttft_ms"][p] / found["warm_ttft_ms"][p]
        found[f"cold_to_warm_{p}"] = round(ratio, 3)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both servers, and the probes."""
    shelf: Path = args.folder / "shelf"
    names = [f"w{i}" for i in range(args.count)]
    for i, name in enumerate(names):
        if not (shelf / name).exists():
            make_adapter(args.model, shelf / name, _RANK, args.seed + i)
    few = names[: args.places]
    popular = names[: -args.probes]  # the last ones stay unread for the probes
    result: dict[str, Any] = {}
    with serving(args, args.places, *(f"--adapter={n}={shelf / n}" for n in few)) as url:
        result["few"] = numbers(load(args, url, few))
    with serving(args, args.count, f"--adapter-dir={shelf}") as url:
        load(args, url, popular)
        result["resident"] = numbers(load(args, url, popular))
    with serving(args, args.places, f"--adapter-dir={shelf}") as url:
        result["many"] = numbers(load(args, url, popular))
        result["probes"] = asyncio.run(probe(args, url, names[-args.probes :]))
    many = result["many"]["output_tokens_per_s"]
    ratios = {
        f"many_to_{other}": round(many / result[other]["output_tokens_per_s"], 3)
        for other in ("few", "resident")
    }
    return {"throughput": ratios, **result}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("--folder", type=Path, required=True, help="where the adapters lie")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--places", type=int, default=16, help="adapters on the device at once")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the popularity")
    parser.add_argument("--probes", type=int, default=60)
    parser.add_argument("--host-gib", type=float, default=1.0, help="the server's host tier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    result = measure(args)
    print(json.dumps(result, indent=1))
    if args.output is not None:
        settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float))}
        text = json.dumps({**describe_environment(), "settings": settings, **result}, indent=1)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
