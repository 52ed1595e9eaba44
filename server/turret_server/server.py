"""From settings to a listening server: the engine's process, the app, uvicorn, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from turret_server.api.app import create_app
from turret_server.api.service import Service
from turret_server.api.settings import ApiSettings
from turret_server.cache import cache_root
from turret_server.config import ServeConfig
from turret_server.engine.link import EngineLink
from turret_server.engine.messages import EngineReady
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError, TurretError
from turret_server.pipeline.generation_defaults import GenerationDefaults
from turret_server.pipeline.recipe_config import NamedRecipes, recipe_error
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.plan import Plan, make_plan
from turret_server.sources.auxiliary import AuxiliaryModel, find_auxiliaries
from turret_server.sources.cached import shrink
from turret_server.telemetry.logging import configure_logging
from turret_server.tenancy.database import Database
from turret_server.tenancy.service import Tenancy, static_keys

_MAX_HEADER_BYTES = 64 << 10


def warn_if_open(config: ServeConfig, console: Console) -> None:
    """Say so if anybody on the network may use the server."""
    if config.is_open and not _is_loopback(config.host):
        console.print(
            f"[bold red]warning:[/] {config.host} is reachable from other machines and no key is "
            "set: anybody there can use this server. Set --api-key and --admin-key.",
            highlight=False,
        )


def run_server(config: ServeConfig) -> None:
    """Serve until a signal.

    Raises:
        StartupError: what was asked for cannot be served.
    """
    console = Console(stderr=True)
    plan = make_plan(config, console)
    configure_logging(config.log_level)
    shrink(plan.adapter_cache_bytes)  # the last server may have had more room
    warn_if_open(config, console)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(plan, console))


@asynccontextmanager
async def open_app(plan: Plan, console: Console) -> AsyncIterator[tuple[FastAPI, EngineReady]]:
    """Start the engine, load what the plan names, and end the engine on leaving.

    Yields:
        The app, whose lifespan is the caller's to run, and what the engine said of the model.

    Raises:
        StartupError: the plan cannot be served.
    """
    config, folder, recipes = plan.config, plan.folder, plan.recipes
    tokenizer = Tokenizer.load(folder)
    settings = _api_settings(plan)
    taken = (*settings.base_names, *settings.recipes)
    auxiliaries = find_auxiliaries(
        config.auxiliaries, tokenizer, taken, progress=console.is_terminal
    )
    link = EngineLink(_engine_settings(config, folder, tokenizer, auxiliaries))
    try:
        with console.status(f"loading {config.model}"):
            ready = await link.start()
        tokenizers = {name: model.tokenizer for name, model in auxiliaries.items()}
        app = create_app(link, tokenizer, settings, auxiliaries=tokenizers)
        service: Service = app.state.service
        for name, adapter in plan.adapters.items():
            local = plan.local[name]
            await service.adapters.load(name, local, digest=adapter.digest, pin=adapter.pin)
        await _prepare_recipes(service, recipes, console)
        # What is here stays: a full collection would look at all of it, a third of a second in
        # which nobody gets a token. Large documents bring collections about.
        gc.collect()
        gc.freeze()
        yield app, ready
    finally:
        await link.close()


async def _serve(plan: Plan, console: Console) -> None:
    # Before the model is loaded: a port in use should not be found out minutes later.
    listener = _bind(plan.config.host, plan.config.port)
    with contextlib.closing(listener):
        async with open_app(plan, console) as (app, ready):
            server = _Server(
                uvicorn.Config(
                    app,
                    # h11 bounds the header; the faster parser takes any length.
                    http="h11",
                    h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                    ws="none",  # there is none, whatever else is installed
                    log_level="warning",
                    access_log=False,
                    timeout_graceful_shutdown=int(plan.config.drain_s),
                    server_header=False,
                )
            )
            server.announcement = announcement(app.state.service, ready)
            server.console, server.service = console, app.state.service
            await server.serve(sockets=[listener])


def announcement(service: Service, ready: EngineReady) -> str:
    """What is served, in one line of Rich's markup."""
    names, weights = service.catalog.names(), ready.dtype
    if ready.quantization != "none":
        weights += f" with {ready.quantization} weights"
    return (
        f"[bold]Turret[/] serves [bold]{service.settings.base_names[0]}[/] with "
        f"{len(names)} adapters ({', '.join(names) or 'none'}), {weights} on "
        f"{ready.device}, context {ready.max_model_len}"
    )


async def _prepare_recipes(service: Service, recipes: NamedRecipes, console: Console) -> None:
    """Derive what is to be derived, and try what is to be stacked.

    Raises:
        StartupError: names the recipe.
    """
    for name, derivation in recipes.derived.items():
        try:
            record, _ = await service.adapters.derive(name, derivation)
        except TurretError as error:
            raise recipe_error(name, f"{error.what}: {error.why}", error.fix) from error
        for note in record.notes:
            console.print(f"recipe {name}: {note}", style="dim", highlight=False, markup=False)
    for name in recipes.stacks:
        if name in service.recipes.base_names:
            raise recipe_error(name, "the base model has this name", "Choose another name.")
        if missing := service.recipes.missing(name):
            console.print(
                f"[yellow]note:[/] the recipe {name!r} is no model until {', '.join(missing)} "
                "is loaded",
                highlight=False,
            )
            continue
        try:
            service.recipes.resolve(name)
        except TurretError as error:
            raise recipe_error(name, f"{error.what}: {error.why}", error.fix) from error


def _bind(host: str, port: int) -> socket.socket:
    """A socket with its address; it listens once the model can answer."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartupError(
            f"the server cannot listen on {host} port {port}",
            error.strerror or str(error),
            "Choose another --host or --port; --port 0 takes a free one.",
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn that says where it listens (port 0 is resolved then) and drains at the end."""

    announcement = ""
    console: Console
    service: Service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; what is in flight may finish, what comes now is turned away."""
        self.service.admission.draining = True
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end, before the engine could be closed."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self.console.print(
                f"{self.announcement}\nlistening on http://{shown}:{port}", soft_wrap=True
            )


def _engine_settings(
    config: ServeConfig,
    folder: Path,
    tokenizer: Tokenizer,
    auxiliaries: Mapping[str, AuxiliaryModel],
) -> EngineSettings:
    if config.dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise StartupError(
            f"the dtype {config.dtype!r} is not served",
            "known are auto, bfloat16, float16 and float32",
            "Use one of them.",
        )
    return EngineSettings(
        model=str(folder),
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        max_model_len=config.max_model_len,
        kv_cache_bytes=int(config.kv_cache_gib * 2**30),
        max_running=config.max_running,
        max_step_tokens=config.max_step_tokens,
        max_resident_adapters=config.max_resident_adapters,
        adapter_rank_rows=config.adapter_rank_rows,
        host_adapter_bytes=int(config.host_adapter_gib * 2**30),
        adapter_delta_bytes=config.adapter_delta_mib << 20,
        sparse_mlp_bytes=config.sparse_mlp_mib << 20,
        threads=config.threads,
        tensor_parallel=config.tensor_parallel,
        eos_token_ids=tokenizer.eos_token_ids,
        auxiliaries={name: str(model.folder) for name, model in auxiliaries.items()},
        auxiliary_kv_bytes=int(config.auxiliary_kv_gib * 2**30),
    )


def _api_settings(plan: Plan) -> ApiSettings:
    config, recipes = plan.config, plan.recipes
    return ApiSettings(
        base_names=plan.base_names,
        model_root=config.model,
        adapter_roots=(*config.adapter_roots, cache_root()),
        adapter_remotes=config.adapter_remotes,
        adapter_dirs=config.adapter_dirs,
        recipes=recipes.stacks,
        fusions=recipes.fusions,
        # All members of a request are rows of one step.
        max_fusion_members=min(
            config.max_fusion_members, config.max_running, config.max_step_tokens
        ),
        adapter_cache_bytes=plan.adapter_cache_bytes,
        tenancy=_tenancy(config),
        generation_defaults=GenerationDefaults.from_folder(plan.folder),
        max_waiting=config.max_waiting,
        max_body_bytes=config.max_body_bytes,
        documents=plan.documents,
    )


def _tenancy(config: ServeConfig) -> Tenancy:
    keys = static_keys(config.api_keys, config.admin_keys)
    if not config.database:
        return Tenancy(keys)
    return Tenancy(keys, Database(config.database), config.state_dir / "usage")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loop_factory():
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
