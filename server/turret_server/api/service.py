"""Everything the routes share, in one place and with one life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fastapi import Request

import turret_server
from turret_adapters.catalog import Catalog
from turret_server.api.adapter_loader import AdapterLoader
from turret_server.api.admission import Admission, engine_ready
from turret_server.api.documents.reader import DocumentReader
from turret_server.api.sampling import ModelLimits
from turret_server.api.settings import ApiSettings
from turret_server.api.tenant_view import TenantAdapters
from turret_server.engine.client import EngineClient
from turret_server.engine.messages import EngineReady
from turret_server.pipeline.auxiliary import AuxiliaryTokens
from turret_server.pipeline.constraints import Constraints
from turret_server.pipeline.names import Names
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.recipe import RecipeBook
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.scorer.scorer import Scorer
from turret_server.telemetry.metrics import Metrics
from turret_server.telemetry.record import record_of
from turret_server.tenancy.principal import Principal, Scope


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that serve a request, built by `create_app`.

    `longest_token` is in characters: a text of more than that times the context can't fit.
    `auxiliaries` make the prompts of auxiliary models.
    """

    settings: ApiSettings
    engine: EngineClient
    tokenizer: Tokenizer
    prompt: ChatPrompt
    constraints: Constraints
    catalog: Catalog | Names
    recipes: RecipeBook
    metrics: Metrics
    admission: Admission
    adapters: AdapterLoader | TenantAdapters
    documents: DocumentReader
    longest_token: int
    auxiliaries: Mapping[str, AuxiliaryTokens] = field(default_factory=dict)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)

    def seen_by(self, caller: Principal | None) -> Service:
        """The service for one caller: all of it where nobody is asked, and for admins.

        Where adapters of the tenant's own and granted ones have one name, its own is meant.
        """
        if caller is None or caller.has(Scope.ADMIN):
            return self
        assert isinstance(self.catalog, Catalog)
        assert isinstance(self.adapters, AdapterLoader)
        tenant = self.recipes.granted(caller.tenant)
        names = Names(self.catalog, tenant)
        return replace(
            self,
            catalog=names,
            recipes=self.recipes.seen_by(tenant, names),
            adapters=TenantAdapters(self.adapters, tenant, names),
        )

    def unread_names(self) -> list[str]:
        """Adapters on the shelf that nobody has asked for."""
        return [name for name in self.adapters.shelf.names() if self.is_unread(name)]

    def is_unread(self, name: str) -> bool:
        """Is it an adapter on the shelf that nobody has asked for?"""
        is_known = self.catalog.get(name) is not None or self.recipes.served(name)
        return not is_known and self.adapters.shelf.find(name) is not None

    def check_model(self, name: str | None) -> None:
        """Does anything answer to this name?

        Raises:
            NotFound, BadRequest: nothing does.
        """
        if name is None or not self.is_unread(name):
            self.recipes.resolve(name)

    @property
    def ready(self) -> EngineReady:
        """What the engine said of the base model.

        Raises:
            EngineUnavailable: it is not up.
        """
        return engine_ready(self.engine)

    @property
    def limits(self) -> ModelLimits:
        """What a request must fit."""
        ready = self.ready
        return ModelLimits(
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
            eos_token_ids=self.tokenizer.eos_token_ids,
            defaults=self.settings.generation_defaults,
        )

    @property
    def fingerprint(self) -> str:
        """Changes when the same request may be answered differently."""
        return f"turret-{turret_server.__version__}-{self.ready.weights_digest[:8]}"


async def service_of(request: Request) -> Service:
    """The service of the app that a request came to, as its caller sees it; a FastAPI dependency.

    A coroutine, because FastAPI would run a plain function in a thread.
    """
    service: Service = request.app.state.service
    return service.seen_by(record_of(request.scope).principal)
