"""From settings to what is to be served: sources found, files fetched, tables parsed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from rich.console import Console

import turret_adapters
from turret_server.api.documents.settings import DocumentSettings
from turret_server.api.reload import Served
from turret_server.api.schema.fusion import parse_fusion
from turret_server.api.schema.rerank import parse_rerank
from turret_server.cache import cache_root
from turret_server.config import ServeConfig
from turret_server.errors import StartupError
from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.pipeline.documents.tasks import load_tasks
from turret_server.pipeline.recipe_config import NamedRecipes, parse_recipes, recipe_error
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.scorer.messages import ScorerSettings
from turret_server.sources import DEMO, resolve_model
from turret_server.sources.adapter import AdapterSources, LocalAdapter
from turret_server.sources.auxiliary import AuxiliaryModel, find_auxiliaries
from turret_server.sources.cached import FetchLimits
from turret_server.sources.scorer import find_scorers
from turret_server.sources.settings import check_remotes, parse_adapters
from turret_server.sources.web import check_prefixes
from turret_server.tenancy.service import static_keys

_OCR_ENGINES = ("rapidocr", "tesseract")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be served, found and checked: everything but the model's weights.

    Attributes:
        config: as given.
        documents: how documents are read.
        folder: of the base model.
        base_names: names of the base model; the first is canonical.
        tokenizer: of the base model.
        served: adapters, recipes and keys, which can change while serving.
        local: where each of the adapters lies.
        auxiliaries: models that take part in fusions.
        scorers: what their processes are told.
    """

    config: ServeConfig
    documents: DocumentSettings
    folder: Path
    base_names: tuple[str, ...]
    tokenizer: Tokenizer
    served: Served
    local: Mapping[str, LocalAdapter]
    auxiliaries: Mapping[str, AuxiliaryModel]
    scorers: Mapping[str, ScorerSettings]


def make_plan(config: ServeConfig, console: Console) -> Plan:
    """Find what is to be served; what is not here yet is downloaded.

    Raises:
        StartupError: what was asked for cannot be served.
    """
    progress = console.is_terminal
    served = what_is_served(config)
    folder = resolve_model(config.model, progress=progress)
    documents = document_settings(config)
    tokenizer = Tokenizer.load(folder)
    name = folder.name if config.model == DEMO else config.model.rstrip("/")
    base_names = config.served_names or (name,)
    taken = (*base_names, *served.recipes.stacks)
    auxiliaries = find_auxiliaries(config.auxiliaries, tokenizer, taken, progress=progress)
    scorers = _scorers(config, served.recipes, (*taken, *auxiliaries), progress=progress)
    sources = AdapterSources(limits=FetchLimits(cache_bytes=config.adapter_cache_bytes))
    local = {
        name: sources.fetch(sources.locate(adapter.source, confined=False), progress=progress)
        for name, adapter in served.adapters.items()
    }
    return Plan(
        config=config,
        documents=documents,
        folder=folder,
        base_names=base_names,
        tokenizer=tokenizer,
        served=served,
        local=local,
        auxiliaries=auxiliaries,
        scorers=scorers,
    )


def what_is_served(config: ServeConfig) -> Served:
    """What can change while serving.

    Raises:
        StartupError: an adapter, a recipe or a remote is not understood, or keys make no sense.
    """
    check_remotes(config.adapter_remotes)
    if config.database == "":
        raise StartupError(
            "--database is empty",
            "nobody would be asked for a key, and that is not what it is given for",
            "Name the database, or leave --database out.",
        )
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


def document_settings(config: ServeConfig) -> DocumentSettings:
    """How documents are read.

    Raises:
        StartupError: a setting is not understood.
    """
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


def _table(name: str, text: str) -> Mapping[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StartupError(
            f"--task {name!r} is not understood", f"it is no JSON ({error})", "Write a table."
        ) from error


def _demo_adapters(model: str) -> dict[str, str]:
    if model != DEMO:
        return {}
    root = Path(turret_adapters.__file__).parent / "demo"
    return {p.parent.name: str(p.parent) for p in sorted(root.glob("*/*.json"))}
