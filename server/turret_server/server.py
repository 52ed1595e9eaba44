"""From settings to a listening server: the engine's process, the app, uvicorn, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from rich.console import Console

from turret_server.api.app import create_app
from turret_server.api.changes import check_names
from turret_server.api.reload import Reloader, Served
from turret_server.api.service import Service
from turret_server.api.settings import ApiSettings
from turret_server.api.threads import in_thread
from turret_server.config import ServeConfig
from turret_server.engine.link import EngineLink
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError, TurretError
from turret_server.http_server import HttpServer, bind
from turret_server.pipeline.generation_defaults import GenerationDefaults
from turret_server.pipeline.recipe_config import NamedRecipes, recipe_error
from turret_server.plan import Plan, make_plan, what_is_served
from turret_server.reconfigure import Reconfigure
from turret_server.scorer.start import running_scorers
from turret_server.sources.cached import shrink
from turret_server.telemetry.logging import configure_logging
from turret_server.telemetry.spans import make_tracing
from turret_server.tenancy.database import Database
from turret_server.tenancy.service import Tenancy

_TRACES_S = 3.0  # to send the last spans


def run_server(config: ServeConfig, reread: Callable[[], ServeConfig] | None = None) -> None:
    """Serve until a signal.

    Args:
        config: what to serve.
        reread: the same from the file as it is then; None where there is no file.

    Raises:
        StartupError: what was asked for cannot be served.
    """
    console = Console(stderr=True)
    plan = make_plan(config, console)
    configure_logging(config.log_level)
    shrink(config.adapter_cache_bytes)  # the last server may have had more room
    warn_if_open(config, console)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(plan, reread, console))


def warn_if_open(config: ServeConfig, console: Console) -> None:
    """Say so if anybody on the network may use the server."""
    if config.is_open and not _is_loopback(config.host):
        console.print(
            f"[bold red]warning:[/] {config.host} is reachable from other machines and no key is "
            "set: anybody there can use this server. Set --api-key and --admin-key.",
            highlight=False,
        )


@asynccontextmanager
async def open_app(plan: Plan, console: Console) -> AsyncIterator[tuple[FastAPI, EngineLink]]:
    """Start the engine, load what the plan names, and end the engine on leaving.

    Yields:
        The app, whose lifespan is the caller's to run, and its engine.

    Raises:
        StartupError: the plan cannot be served.
    """
    config, served, settings = plan.config, plan.served, _api_settings(plan)
    tracing = make_tracing(config.otlp_endpoint)
    link = EngineLink(_engine_settings(plan))
    stack = contextlib.AsyncExitStack()
    try:
        with console.status(f"loading {config.model}"):
            # Before the engine, which takes most of what is free on a GPU.
            scorers = await stack.enter_async_context(
                running_scorers(plan.scorers, config.max_waiting)
            )
            await link.start()
        app = create_app(
            link,
            plan.tokenizer,
            settings,
            auxiliaries={name: model.tokens for name, model in plan.auxiliaries.items()},
            scorers=scorers,
            tracing=tracing,
        )
        service: Service = app.state.service
        for name, adapter in served.adapters.items():
            local = plan.local[name]
            await service.adapters.load(name, local, digest=adapter.digest, pin=adapter.pin)
        await _prepare_recipes(service, served.recipes, console)
        # What is here stays: a full collection would look at all of it, a third of a second in
        # which nobody gets a token. Large documents bring collections about.
        gc.collect()
        gc.freeze()
        yield app, link
    finally:
        await link.close()
        await stack.aclose()
        if tracing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(tracing.close), _TRACES_S)


async def _serve(plan: Plan, reread: Callable[[], ServeConfig] | None, console: Console) -> None:
    config = plan.config
    if reread is not None:  # what it would read again has just been read
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
    # Before the model is loaded: a port in use should not be found out minutes later.
    with contextlib.closing(bind(config.host, config.port)) as listener:
        async with open_app(plan, console) as (app, link):
            service: Service = app.state.service
            if reread is not None:
                reloader = Reloader(service, plan.served)
                app.state.reload = Reconfigure(config, reread, what_is_served, reloader)
            server = HttpServer(
                app,
                link,
                drain_s=config.drain_s,
                console=console,
                announcement=announcement(service, link),
                reload=app.state.reload,
            )
            await server.serve(sockets=[listener])


def announcement(service: Service, link: EngineLink) -> str:
    """What is served, in one line of Rich's markup."""
    ready = link.ready
    assert ready is not None
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
    check_names(service.recipes)
    for name in recipes.stacks:
        if missing := service.recipes.missing(name):
            console.print(
                f"[yellow]note:[/] the recipe {name!r} is no model until {', '.join(missing)} "
                "is loaded",
                highlight=False,
            )


def _engine_settings(plan: Plan) -> EngineSettings:
    config = plan.config
    if config.dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise StartupError(
            f"the dtype {config.dtype!r} is not served",
            "known are auto, bfloat16, float16 and float32",
            "Use one of them.",
        )
    return EngineSettings(
        model=str(plan.folder),
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        max_model_len=config.max_model_len,
        kv_cache_bytes=int(config.kv_cache_gib * 2**30),
        max_running=config.max_running,
        max_step_tokens=config.max_step_tokens,
        max_resident_adapters=config.max_resident_adapters,
        adapter_rank_rows=config.adapter_rank_rows,
        adapter_ternary_rows=config.adapter_ternary_rows,
        host_adapter_bytes=int(config.host_adapter_gib * 2**30),
        adapter_delta_bytes=config.adapter_delta_mib << 20,
        sparse_mlp_bytes=config.sparse_mlp_mib << 20,
        overlap=config.overlap,
        threads=config.threads,
        tensor_parallel=config.tensor_parallel,
        eos_token_ids=plan.tokenizer.eos_token_ids,
        auxiliaries={name: str(model.folder) for name, model in plan.auxiliaries.items()},
        auxiliary_ids={
            name: tuple(model.tokens.ids)
            for name, model in plan.auxiliaries.items()
            if model.tokens.ids is not None
        },
        auxiliary_kv_bytes=int(config.auxiliary_kv_gib * 2**30),
    )


def _api_settings(plan: Plan) -> ApiSettings:
    config, served = plan.config, plan.served
    return ApiSettings(
        base_names=plan.base_names,
        model_root=config.model,
        adapter_roots=served.roots,
        adapter_remotes=served.remotes,
        adapter_dirs=served.dirs,
        recipes=served.recipes.stacks,
        fusions=served.recipes.fusions,
        reranks=served.recipes.reranks,
        # All members of a request are rows of one step.
        max_fusion_members=min(
            config.max_fusion_members, config.max_running, config.max_step_tokens
        ),
        adapter_cache_bytes=config.adapter_cache_bytes,
        adapter_shares={name: adapter.share for name, adapter in served.adapters.items()},
        tenancy=_tenancy(config, served),
        share_prefixes=config.share_prefixes,
        generation_defaults=GenerationDefaults.from_folder(plan.folder),
        max_waiting=config.max_waiting,
        max_wait_s=config.max_wait_s,
        max_body_bytes=config.max_body_bytes,
        metrics_labels=config.metrics_labels,
        documents=plan.documents,
    )


def _tenancy(config: ServeConfig, served: Served) -> Tenancy:
    if config.database is None:
        return Tenancy(served.keys)
    return Tenancy(served.keys, Database(config.database), config.state_dir / "usage")


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
