"""From settings to a listening server: the engine's process, the app, uvicorn, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from rich.console import Console

import turret_adapters
from turret_server.api.app import create_app
from turret_server.api.documents.settings import DocumentSettings
from turret_server.api.reload import Reloader, Served
from turret_server.api.schema.fusion import parse_fusion
from turret_server.api.schema.rerank import parse_rerank
from turret_server.api.service import Service
from turret_server.api.settings import ApiSettings
from turret_server.api.threads import in_thread
from turret_server.cache import cache_root
from turret_server.config import ServeConfig
from turret_server.engine.link import EngineLink
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError, TurretError
from turret_server.http_server import HttpServer, bind
from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.pipeline.documents.tasks import load_tasks
from turret_server.pipeline.generation_defaults import GenerationDefaults
from turret_server.pipeline.recipe_config import NamedRecipes, parse_recipes, recipe_error
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.reconfigure import Reconfigure
from turret_server.scorer.messages import ScorerSettings
from turret_server.scorer.start import running_scorers
from turret_server.sources import DEMO, resolve_model
from turret_server.sources.adapter import AdapterSources, LocalAdapter
from turret_server.sources.auxiliary import AuxiliaryModel, find_auxiliaries
from turret_server.sources.cached import FetchLimits, shrink
from turret_server.sources.scorer import find_scorers
from turret_server.sources.settings import check_remotes, parse_adapters
from turret_server.sources.web import check_prefixes
from turret_server.telemetry.logging import configure_logging
from turret_server.telemetry.spans import make_tracing
from turret_server.tenancy.database import Database
from turret_server.tenancy.service import Tenancy, static_keys

_TRACES_S = 3.0  # to send the last spans
_OCR_ENGINES = ("rapidocr", "tesseract")


def run_server(config: ServeConfig, reread: Callable[[], ServeConfig] | None = None) -> None:
    """Serve until a signal.

    Args:
        config: what to serve.
        reread: the same from the file as it is then; None where there is no file.

    Raises:
        StartupError: what was asked for cannot be served.
    """
    console = Console(stderr=True)
    served = _served(config)
    folder = resolve_model(config.model, progress=console.is_terminal)
    documents = _document_settings(config)
    sources = AdapterSources(limits=FetchLimits(cache_bytes=_adapter_cache_bytes(config)))
    local = {
        name: sources.fetch(
            sources.locate(adapter.source, confined=False), progress=console.is_terminal
        )
        for name, adapter in served.adapters.items()
    }
    configure_logging(config.log_level)
    shrink(_adapter_cache_bytes(config))  # the last server may have had more room
    if config.is_open and not _is_loopback(config.host):
        console.print(
            f"[bold red]warning:[/] {config.host} is reachable from other machines and no key is "
            "set: anybody there can use this server. Set --api-key and --admin-key.",
            highlight=False,
        )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, reread, documents, folder, served, local, console))


async def _serve(
    config: ServeConfig,
    reread: Callable[[], ServeConfig] | None,
    documents: DocumentSettings,
    folder: Path,
    served: Served,
    local: dict[str, LocalAdapter],
    console: Console,
) -> None:
    if reread is not None:  # what it would read again has just been read
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
    tokenizer = Tokenizer.load(folder)
    settings = _api_settings(config, documents, folder, served)
    taken = (*settings.base_names, *settings.recipes)
    auxiliaries = find_auxiliaries(
        config.auxiliaries, tokenizer, taken, progress=console.is_terminal
    )
    scorers = _scorers(config, served.recipes, (*taken, *auxiliaries), progress=console.is_terminal)
    # Before the model is loaded: a port in use should not be found out minutes later.
    listener = bind(config.host, config.port)
    tracing = make_tracing(config.otlp_endpoint)
    link = EngineLink(_engine_settings(config, folder, tokenizer, auxiliaries))
    stack = contextlib.AsyncExitStack()
    try:
        with console.status(f"loading {config.model}"):
            # Before the engine, which takes most of what is free on a GPU.
            running = await stack.enter_async_context(running_scorers(scorers, config.max_waiting))
            ready = await link.start()
        tokens = {name: model.tokens for name, model in auxiliaries.items()}
        app = create_app(
            link, tokenizer, settings, auxiliaries=tokens, scorers=running, tracing=tracing
        )
        service: Service = app.state.service
        for name, adapter in served.adapters.items():
            await service.adapters.load(name, local[name], digest=adapter.digest, pin=adapter.pin)
        await _prepare_recipes(service, served.recipes, console)
        if reread is not None:
            app.state.reload = Reconfigure(config, reread, _served, Reloader(service, served))
        names, weights = service.catalog.names(), ready.dtype
        if ready.quantization != "none":
            weights += f" with {ready.quantization} weights"
        server = HttpServer(
            app,
            link,
            drain_s=config.drain_s,
            console=console,
            announcement=f"[bold]Turret[/] serves [bold]{service.settings.base_names[0]}[/] with "
            f"{len(names)} adapters ({', '.join(names) or 'none'}), {weights} on "
            f"{ready.device}, context {ready.max_model_len}",
            reload=app.state.reload,
        )
        # What is here stays: a full collection would look at all of it, a third of a second in
        # which nobody gets a token. Large documents bring collections about.
        gc.collect()
        gc.freeze()
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        await link.close()
        await stack.aclose()
        if tracing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(tracing.close), _TRACES_S)


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
        adapter_ternary_rows=config.adapter_ternary_rows,
        host_adapter_bytes=int(config.host_adapter_gib * 2**30),
        adapter_delta_bytes=config.adapter_delta_mib << 20,
        sparse_mlp_bytes=config.sparse_mlp_mib << 20,
        overlap=config.overlap,
        threads=config.threads,
        tensor_parallel=config.tensor_parallel,
        eos_token_ids=tokenizer.eos_token_ids,
        auxiliaries={name: str(model.folder) for name, model in auxiliaries.items()},
        auxiliary_ids={
            name: tuple(model.tokens.ids)
            for name, model in auxiliaries.items()
            if model.tokens.ids is not None
        },
        auxiliary_kv_bytes=int(config.auxiliary_kv_gib * 2**30),
    )


def _scorers(
    config: ServeConfig, recipes: NamedRecipes, taken: Collection[str], *, progress: bool
) -> dict[str, ScorerSettings]:
    for name, rerank in recipes.reranks.items():
        if rerank.scorer is not None and rerank.scorer not in config.scorers:
            raise recipe_error(name, f"there is no scorer {rerank.scorer!r}", "Name one: --scorer.")
    return {
        name: msgspec.structs.replace(
            one, device=config.device, dtype=config.dtype, threads=config.threads
        )
        for name, one in find_scorers(config.scorers, taken, progress=progress).items()
    }


def _api_settings(
    config: ServeConfig, documents: DocumentSettings, folder: Path, served: Served
) -> ApiSettings:
    default_name = folder.name if config.model == DEMO else config.model.rstrip("/")
    return ApiSettings(
        base_names=config.served_names or (default_name,),
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
        adapter_cache_bytes=_adapter_cache_bytes(config),
        adapter_shares={name: adapter.share for name, adapter in served.adapters.items()},
        tenancy=_tenancy(config, served),
        share_prefixes=config.share_prefixes,
        generation_defaults=GenerationDefaults.from_folder(folder),
        max_waiting=config.max_waiting,
        max_wait_s=config.max_wait_s,
        max_body_bytes=config.max_body_bytes,
        documents=documents,
    )


def _document_settings(config: ServeConfig) -> DocumentSettings:
    check_prefixes(config.document_remotes)
    if config.ocr not in _OCR_ENGINES:
        raise StartupError(
            f"--ocr {config.ocr!r} is not known",
            f"known are {' and '.join(_OCR_ENGINES)}",
            "Use one of them.",
        )
    max_bytes = config.max_document_mib << 20
    return DocumentSettings(
        max_body_bytes=max_bytes,
        max_pages=config.document_pages,
        remotes=config.document_remotes,
        pictures=PictureSettings(
            engine=cast(Any, config.ocr),
            tesseract_language=config.ocr_language,
            workers=config.document_workers or PictureSettings().workers,
            max_bytes=max_bytes,
            max_pages=config.document_pages,
            max_pixels=config.document_megapixels * 10**6,
            page_timeout_s=config.document_timeout_s,
        ),
        tasks=load_tasks({name: _table(name, text) for name, text in config.tasks.items()}),
    )


def _table(name: str, text: str) -> Mapping[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StartupError(
            f"--task {name!r} is not understood", f"it is no JSON ({error})", "Write a table."
        ) from error


def _served(config: ServeConfig) -> Served:
    """What can change while serving.

    Raises:
        StartupError: an adapter, a recipe or a remote is not understood, or keys make no sense.
    """
    check_remotes(config.adapter_remotes)
    if config.metrics_keys and config.is_open:
        raise StartupError(
            "--metrics-key does nothing on a server without other keys",
            "anybody may ask it anything, its metrics too",
            "Set --api-key, --admin-key or --database, or leave it out.",
        )
    return Served(
        adapters=parse_adapters({**_demo_adapters(config.model), **config.adapters}),
        recipes=parse_recipes(config.recipes, parse_fusion, parse_rerank),
        roots=(*config.adapter_roots, cache_root()),
        remotes=config.adapter_remotes,
        dirs=config.adapter_dirs,
        keys=static_keys(
            config.api_keys, config.admin_keys, config.gateway_keys, config.metrics_keys
        ),
    )


def _tenancy(config: ServeConfig, served: Served) -> Tenancy:
    if not config.database:
        return Tenancy(served.keys)
    return Tenancy(served.keys, Database(config.database), config.state_dir / "usage")


def _adapter_cache_bytes(config: ServeConfig) -> int:
    return int(config.adapter_cache_gib * 2**30)


def _demo_adapters(model: str) -> dict[str, str]:
    if model != DEMO:
        return {}
    root = Path(turret_adapters.__file__).parent / "demo"
    return {p.parent.name: str(p.parent) for p in sorted(root.glob("*/*.json"))}


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
