"""From settings to what is to be served: sources found, files fetched, tables parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

import turret_adapters
from turret_server.api.documents.settings import DocumentSettings
from turret_server.api.schema.fusion import parse_fusion
from turret_server.config import ServeConfig
from turret_server.errors import StartupError
from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.pipeline.documents.tasks import load_tasks
from turret_server.pipeline.recipe_config import NamedRecipes, parse_recipes
from turret_server.sources import DEMO, resolve_model
from turret_server.sources.adapter import AdapterSources, LocalAdapter
from turret_server.sources.cached import FetchLimits
from turret_server.sources.settings import AdapterSetting, check_remotes, parse_adapters
from turret_server.sources.web import check_prefixes

_OCR_ENGINES = ("rapidocr", "tesseract")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be served, found and checked: everything but the model's weights.

    Attributes:
        config: as given.
        documents: how documents are read.
        folder: of the base model.
        adapters: what was asked for, by name.
        local: where each of them lies.
        recipes: the named ones.
    """

    config: ServeConfig
    documents: DocumentSettings
    folder: Path
    adapters: Mapping[str, AdapterSetting]
    local: Mapping[str, LocalAdapter]
    recipes: NamedRecipes

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the base model; the first is canonical."""
        config = self.config
        default = self.folder.name if config.model == DEMO else config.model.rstrip("/")
        return config.served_names or (default,)

    @property
    def adapter_cache_bytes(self) -> int:
        """Disk for fetched adapters."""
        return int(self.config.adapter_cache_gib * 2**30)


def make_plan(config: ServeConfig, console: Console) -> Plan:
    """Find what is to be served; what is not here yet is downloaded.

    Raises:
        StartupError: what was asked for cannot be served.
    """
    recipes = parse_recipes(config.recipes, parse_fusion)
    folder = resolve_model(config.model, progress=console.is_terminal)
    check_remotes(config.adapter_remotes)
    documents = document_settings(config)
    adapters = parse_adapters({**_demo_adapters(config.model), **config.adapters})
    cache_bytes = int(config.adapter_cache_gib * 2**30)
    sources = AdapterSources(limits=FetchLimits(cache_bytes=cache_bytes))
    local = {
        name: sources.fetch(
            sources.locate(adapter.source, confined=False), progress=console.is_terminal
        )
        for name, adapter in adapters.items()
    }
    return Plan(
        config=config,
        documents=documents,
        folder=folder,
        adapters=adapters,
        local=local,
        recipes=recipes,
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
