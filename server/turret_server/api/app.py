"""The ASGI app: routes, limits, error handlers, built around an engine client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

import turret_server
from turret_adapters.catalog import Catalog
from turret_adapters.shelf import AdapterShelf
from turret_server.api import (
    adapters,
    chat,
    completions,
    health,
    layout,
    lifecycle,
    models,
    profile,
    rerank,
    tenants,
    tokens,
)
from turret_server.api.adapter_loader import AdapterLoader
from turret_server.api.admission import Admission
from turret_server.api.auth import Authenticate
from turret_server.api.documents.reader import DocumentReader
from turret_server.api.error_responses import install_error_handlers
from turret_server.api.middleware import Observe
from turret_server.api.openapi import DESCRIPTION, install_openapi
from turret_server.api.schema.responses import ErrorBody
from turret_server.api.service import Service
from turret_server.api.settings import ApiSettings
from turret_server.engine.client import EngineClient
from turret_server.pipeline.auxiliary import AuxiliaryTokens
from turret_server.pipeline.constraints import Constraints
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.recipe import RecipeBook
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.scorer.scorer import Scorer
from turret_server.sources.adapter import AdapterSources
from turret_server.sources.cached import FetchLimits
from turret_server.telemetry.document_metrics import DocumentMetrics
from turret_server.telemetry.metrics import Metrics

if TYPE_CHECKING:  # it needs turret[otel]
    from turret_server.telemetry.tracing import Tracing

Lifespan = Callable[[Service], AbstractAsyncContextManager[Any]]


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    settings: ApiSettings,
    *,
    chat_template: str | None = None,
    auxiliaries: Mapping[str, AuxiliaryTokens] | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    catalog: Catalog | None = None,
    tracing: Tracing | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """Build the app; it neither starts nor stops the engine.

    Args:
        engine: the client of a running (or starting) engine.
        tokenizer: of the base model.
        settings: of the HTTP side.
        chat_template: Jinja source in place of the model's own.
        auxiliaries: what makes the prompts of the engine's auxiliary models.
        scorers: that rerank answers, by name; running.
        catalog: of served adapters; a new one by default. An engine supervisor that shares it
            knows what to load again after a restart.
        tracing: gets a span of every request; closed by whoever made it.
        lifespan: entered with the service before the first request and left after the last, for
            what belongs to the app's life: starting the engine, loading adapters.

    Returns:
        The app; `app.state.service` is the `Service`.

    Raises:
        StartupError: the chat template is not valid.
    """
    catalog = Catalog() if catalog is None else catalog
    recipes = RecipeBook(
        catalog,
        settings.base_names,
        settings.recipes,
        settings.fusions,
        settings.max_fusion_members,
        tuple(auxiliaries or ()),
        settings.reranks,
    )
    metrics = Metrics(engine, catalog, recipes, settings.tenancy, settings.metrics_labels)
    service = Service(
        settings=settings,
        engine=engine,
        tokenizer=tokenizer,
        prompt=ChatPrompt(tokenizer, chat_template),
        constraints=Constraints(tokenizer),
        catalog=catalog,
        recipes=recipes,
        metrics=metrics,
        admission=Admission(engine, settings.max_waiting, settings.max_wait_s),
        adapters=AdapterLoader(
            engine,
            catalog,
            recipes,
            metrics,
            AdapterSources(
                settings.adapter_roots,
                settings.adapter_remotes,
                FetchLimits(cache_bytes=settings.adapter_cache_bytes),
            ),
            AdapterShelf(settings.adapter_dirs),
        ),
        documents=DocumentReader(settings.documents, DocumentMetrics(metrics.registry)),
        longest_token=_longest_token(tokenizer),
        auxiliaries=dict(auxiliaries or {}),
        scorers=dict(scorers or {}),
    )

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with (
                settings.tenancy.running(),
                lifespan(service) if lifespan else nullcontext(),
            ):
                yield
        finally:
            service.constraints.close()
            await service.documents.close()

    app = FastAPI(
        title="Turret",
        version=turret_server.__version__,
        description=DESCRIPTION,
        lifespan=run,
        docs_url="/docs" if settings.enable_docs else None,
        redoc_url="/redoc" if settings.enable_docs else None,
        generate_unique_id_function=lambda route: route.name,
        # Declared once for all routes; without it FastAPI documents a 422 that is never sent.
        responses={
            "4XX": {"model": ErrorBody, "description": "The request is at fault."},
            "5XX": {"model": ErrorBody, "description": "The server is at fault, or not ready."},
        },
    )
    app.state.service = service
    app.state.reload = None  # set by a server that has a configuration to read again
    for module in (
        *(chat, completions, rerank, layout, models, adapters, tokens),
        *(tenants, lifecycle, profile, health),
    ):
        app.include_router(module.router)
    install_error_handlers(app)
    install_openapi(app)
    # Added last, outermost: every response carries a request id, refusals of keys too.
    app.add_middleware(Authenticate, tenancy=settings.tenancy)
    app.add_middleware(Observe, metrics=metrics, tracing=tracing)
    return app


@lru_cache(maxsize=1)
def _longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token; a tenth of a second for 50,000 tokens."""
    return max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
