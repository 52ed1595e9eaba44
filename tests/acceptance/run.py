"""Run third-party clients, unmodified, against a real server, and check what they return.

    python tests/acceptance/run.py                    # all of them
    python tests/acceptance/run.py langchain lm-eval  # some

Needs an environment with `turret[dev]`. Each client is installed once from PyPI into a virtual
environment of its own below the cache folder (TURRET_CACHE), because their requirements contradict
each other. Prints a table, writes it into docs/clients.md, and exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from client_results import Result, print_table, update_document
from client_venv import client_python
from demo_server import DemoServer, running

_HERE = Path(__file__).parent
_DOCUMENT = _HERE.parents[1] / "docs" / "clients.md"
_LIMIT_S = 3600


@dataclass(frozen=True, slots=True)
class Client:
    """A client and how it is installed.

    Attributes:
        name: as on the command line; its script is client_NAME.py.
        requirements: of pip; the first is the client itself. None: the script needs no packages.
        dtype: of the server: float32 where numbers are compared with another implementation.
    """

    name: str
    requirements: tuple[str, ...]
    dtype: str = "bfloat16"

    @property
    def script(self) -> Path:
        """The file that exercises it."""
        return _HERE / f"client_{self.name.replace('-', '_')}.py"


# guidellm needs torch; this release is what Turret itself is tested with.
CLIENTS = (
    Client("curl", ()),
    Client("openai", ("openai==3.57.0",)),
    Client("langchain", ("langchain-openai==1.7.4", "langchain-core==1.8.3", "openai==3.57.0")),
    Client(
        "llama-index",
        ("llama-index-llms-openai-like==0.8.1", "llama-index-core==0.14.25", "openai==2.54.0"),
    ),
    Client("litellm", ("litellm==1.110.2", "openai==3.57.0")),
    Client("llm", ("llm==0.36", "openai==3.57.0")),
    Client("guidellm", ("guidellm==0.8.1", "torch==2.13.0", "transformers==5.24.0")),
    Client("aiperf", ("aiperf==0.13.0", "transformers==5.24.0")),
    Client("lm-eval", ("lm_eval[api]==0.4.13", "datasets==5.2.0"), dtype="float32"),
)


def main() -> None:
    """Run the clients that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [client.name for client in CLIENTS]
    parser.add_argument("client", nargs="*", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--no-write", action="store_true", help="leave docs/clients.md alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.client) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    chosen = [c for c in CLIENTS if not arguments.client or c.name in arguments.client]
    # Python would end at once, and leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = []
    for dtype, clients in groupby(chosen, lambda client: client.dtype):
        with tempfile.TemporaryDirectory(prefix="turret-acceptance-") as scratch:
            folder = Path(scratch)
            with running(dtype, folder / "server.log") as server:
                for client in clients:
                    results.append(_run(client, server, folder / client.name))
                    print(f"{client.name}: {results[-1].verdict}", flush=True)
    print_table(results)
    if not arguments.no_write:
        update_document(_DOCUMENT, results, names)
    sys.exit(any(result.error for result in results))


def _run(client: Client, server: DemoServer, folder: Path) -> Result:
    """Install the client if need be, and run its script."""
    print(f"== {client.name}", flush=True)
    scratch, outcomes, given = folder / "scratch", folder / "outcomes", folder / "session.json"
    scratch.mkdir(parents=True)
    outcomes.touch()
    given.write_text(json.dumps(server.description | {"scratch": str(scratch)}))
    python = client_python(client.name, client.requirements)
    status: int | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = subprocess.run(
            [str(python), str(client.script), str(given), str(outcomes)],
            # A temporary folder: some clients write where they stand. The script's own folder
            # must be importable, whatever the caller set.
            cwd=scratch,
            env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")},
            stdin=subprocess.DEVNULL,
            timeout=_LIMIT_S,
        ).returncode
    checks = [json.loads(line) for line in outcomes.read_text().splitlines()]
    failed = [f"{check['what']}: {check['error']}" for check in checks if check["error"]]
    if (status != 0 or not checks) and not failed:
        failed = [f"the script ended with status {status} after {len(checks)} checks"]
    return Result(
        client=client.name,
        version=client.requirements[0].partition("==")[2] if client.requirements else _curl(),
        exercised=[check["what"] for check in checks],
        error="; ".join(failed),
        turret=version("turret"),
    )


def _curl() -> str:
    return subprocess.check_output(["curl", "--version"], text=True).split()[1]


if __name__ == "__main__":
    main()
