"""Run the same loads against Turret and its peers, one server alive at a time.

    python bench/peers/run.py MODEL --repeats 3
    python bench/peers/run.py --markdown docs/benchmarks.md

The first form installs what is missing and writes one result per server, load and repetition,
each readable by `turret bench compare`; repetitions are interleaved, so that a machine that slows
down over the hour slows every server down alike. The second form runs nothing: it puts the table
of the results into a Markdown file.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import uvloop
from deployment import Deployment, Server
from folders import peer_folder
from loads import LOADS, MAX_MODEL_LEN, Load
from make_adapters import make_adapters
from process import RunningServer, ServerFailed, free_port, running
from server_llama_cpp import LlamaCpp
from server_peft import Peft
from server_turret import Turret
from server_vllm import Vllm
from tables import render_tables, update_file

from turret_server.loadtest.config import LoadConfig
from turret_server.loadtest.driver import run_load
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.popularity import Popularity
from turret_server.loadtest.result import build_result, read_result, write_result

SERVERS: dict[str, type[Server]] = {
    "turret": Turret,
    "llama.cpp": LlamaCpp,
    "vllm": Vllm,
    "transformers+peft": Peft,
}
RESULTS = Path(__file__).parent.parent / "results" / "peers"


def measure(
    server: Server, deployment: Deployment, load: Load, repeat: int, live: RunningServer, out: Path
) -> None:
    """Send one load to a running server and write its result."""
    names = list(deployment.adapters)[: load.num_asked]
    if names:
        targets = tuple(server.adapter(deployment, name) for name in names)
    else:
        targets = (server.base(deployment),)
    config = LoadConfig(
        url=f"http://127.0.0.1:{deployment.port}",
        targets=targets,
        popularity=Popularity("round-robin"),
        concurrency=load.concurrency,
        num_requests=load.concurrency * load.requests_per_worker,
        prompt_lengths=Lengths("fixed", load.prompt_words),
        output_lengths=Lengths("fixed", load.output_tokens),
        num_warmup=max(load.concurrency, load.num_asked),
        # Prompts differ between loads and repetitions, and are the same for every server: no
        # server meets a prompt twice, so none answers from a prefix cache.
        seed=1000 * repeat + [known.name for known in LOADS].index(load.name),
    )
    run = uvloop.run(run_load(config))
    about = {
        "name": server.name,
        "versions": server.versions(),
        "argv": [_portable(word) for word in server.launch(deployment).argv],
        "num_adapters": len(deployment.adapters),
        "start_s": round(live.start_s, 1),
        "memory_mb": live.memory_mb(),
    }
    result = build_result(config, run, label=f"{server.name} {load.name} #{repeat}", server=about)
    result["load"] = load.name
    write_result(result, out / f"{load.name}.{server.name}.{repeat}.json")
    summary = result["summary"]
    errors = summary["errors"] or "no errors"
    print(f"  {load.name:15} {summary[load.metric]:8.1f} {load.metric}, {errors}", flush=True)


def run_all(
    model: Path, servers: list[Server], loads: list[Load], repeats: int, out: Path
) -> list[str]:
    """Run every load against every server, `repeats` times; return what failed."""
    folder = peer_folder("adapters") / model.name
    adapters = make_adapters(model, folder, max(load.num_resident for load in loads))
    failed = []
    for repeat in range(1, repeats + 1):
        for num_resident, group in groupby(loads, key=lambda load: load.num_resident):
            same_start = list(group)
            for server in servers:
                deployment = Deployment(
                    model=model,
                    adapters=dict(list(adapters.items())[:num_resident]),
                    max_concurrency=max(load.concurrency for load in same_start),
                    max_model_len=MAX_MODEL_LEN,
                    port=free_port(),
                )
                print(f"{server.name}, {num_resident} adapters, repeat {repeat}", flush=True)
                log = peer_folder("logs") / f"{server.name}-{num_resident}.log"
                try:
                    with running(server.launch(deployment), deployment.port, log) as live:
                        for load in same_start:
                            measure(server, deployment, load, repeat, live, out)
                except ServerFailed as error:
                    failed.append(f"{server.name}, {num_resident} adapters, repeat {repeat}")
                    print(f"  failed: {error}", flush=True)
    return failed


def _portable(word: str) -> str:
    """A word of a command line as it reads on any machine: results are published."""
    path = Path(word)
    if path.is_relative_to(Path(sys.prefix)):
        return path.name
    return word.replace(str(Path.home()), "~")


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="folder of the base model")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="default: all")
    parser.add_argument("--load", action="append", choices=[load.name for load in LOADS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="one short request per worker: does everything start?"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="update the table in FILE")
    args = parser.parse_args()
    # Ended from outside, still stop the server that is running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers = [SERVERS[name]() for name in args.server or SERVERS]
    failed = []
    if args.model is not None or args.install_only:
        for server in servers:
            server.install()
    if args.model is not None and not args.install_only:
        loads = [load for load in LOADS if load.name in (args.load or [x.name for x in LOADS])]
        if args.quick:
            loads = [replace(load, requests_per_worker=1, output_tokens=8) for load in loads]
            args.results = args.results / "quick"  # not to be taken for measurements
        model = args.model.resolve()
        failed = run_all(model, servers, loads, args.repeats, args.results)
    if args.markdown is not None or args.model is not None:
        tables = render_tables([read_result(path) for path in sorted(args.results.glob("*.json"))])
        print(tables)
        if args.markdown is not None:
            update_file(args.markdown, tables)
    for what in failed:
        print(f"failed: {what}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
