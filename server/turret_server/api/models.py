"""GET /v1/models: everything that can be named as `model`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from turret_adapters.catalog import AdapterRecord
from turret_server.api.schema.responses import ModelCard, ModelList
from turret_server.api.service import Service, service_of
from turret_server.errors import TurretError
from turret_server.pipeline.recipe import Recipe, show_stack
from turret_server.telemetry.record import record_of

router = APIRouter(tags=["OpenAI"])

_STARTED = int(time.time())

ServiceDep = Annotated[Service, Depends(service_of)]


@router.get("/v1/models", summary="List the base model, recipes and adapters")
async def list_models(request: Request, service: ServiceDep) -> ModelList:
    """List what can be named as `model`. Where keys are configured, without one: the base only."""
    await service.adapters.sweep()
    cards = [_base_card(service, name) for name in service.settings.base_names]
    if service.settings.tenancy.is_open or record_of(request.scope).principal:
        cards += [_recipe_card(service, recipe) for recipe in _recipes(service)]
        cards += [_adapter_card(service, r) for r in service.catalog.records() if r.is_model]
        cards += [_shelf_card(service, name) for name in service.unread_names()]
    return ModelList(data=cards)


@router.get("/v1/models/{model:path}", summary="Describe one model")
async def get_model(model: str, service: ServiceDep) -> ModelCard:
    """Describe anything that can be named as `model`, combinations such as `a+b` included."""
    if service.is_unread(model):
        return _shelf_card(service, model)
    recipe = service.recipes.resolve(model)
    if model in service.settings.base_names:
        return _base_card(service, model)
    if (record := service.catalog.get(model)) is not None:
        return _adapter_card(service, record)
    return _recipe_card(service, recipe)


def _recipes(service: Service) -> list[Recipe]:
    """Named recipes that can be asked: their adapters are loaded, and fit."""
    recipes = []
    for name in service.recipes.recipes:
        if not service.recipes.missing(name):
            with suppress(TurretError):
                recipes.append(service.recipes.resolve(name))
    return recipes


def _base_card(service: Service, name: str) -> ModelCard:
    ready = service.engine.ready
    return ModelCard(
        id=name,
        created=_STARTED,
        root=service.settings.model_root or name,
        parent=None,
        kind="base",
        digest=ready and ready.weights_digest,
        max_model_len=ready and ready.max_model_len,
    )


def _adapter_card(service: Service, record: AdapterRecord) -> ModelCard:
    ready = service.engine.ready
    return ModelCard(
        id=record.name,
        created=int(record.loaded_at),
        root=record.source,
        parent=service.settings.base_names[0],
        kind=record.kind,
        digest=record.digest,
        max_model_len=ready and ready.max_model_len,
    )


def _shelf_card(service: Service, name: str) -> ModelCard:
    ready = service.engine.ready
    found = service.adapters.shelf.find(name)
    return ModelCard(
        id=name,
        created=_STARTED,
        root=str(found[0]) if found else name,
        parent=service.settings.base_names[0],
        kind="adapter",
        digest=None,
        max_model_len=ready and ready.max_model_len,
    )


def _recipe_card(service: Service, recipe: Recipe) -> ModelCard:
    ready, stack = service.engine.ready, service.recipes.recipes.get(recipe.model)
    root = show_stack(stack) if stack else recipe.model
    return ModelCard(
        id=recipe.model,
        created=_STARTED,
        root=root if recipe.fusion is None else str(recipe.fusion.spec),
        parent=service.settings.base_names[0],
        kind="recipe" if recipe.fusion is None else "fusion",
        digest=recipe.digest,
        max_model_len=ready and ready.max_model_len,
    )
