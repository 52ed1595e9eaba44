"""Settings of the HTTP side, frozen at start but for what a reload may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turret_server.api.documents.settings import DocumentSettings
from turret_server.pipeline.fusion import FusionSpec
from turret_server.pipeline.generation_defaults import GenerationDefaults
from turret_server.pipeline.recipe import Stack
from turret_server.pipeline.rerank import RerankSpec
from turret_server.tenancy.service import Tenancy


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """What `create_app` needs to know beside the engine and the tokenizer.

    Attributes:
        base_names: names of the base model; the first is canonical.
        model_root: where the base model came from, shown as `root` in /v1/models.
        adapter_roots: folders below which run-time loads may read.
        adapter_remotes: URL prefixes that run-time loads may fetch from.
        adapter_cache_bytes: of fetched adapters on the disk; None for any number.
        adapter_dirs: folders whose sub-folders are adapters, read when first asked for.
        recipes: named recipes: name -> expression such as "formal:0.7+sql", or pairs.
        fusions: of named recipes, which `recipes` lists too.
        max_fusion_members: of one request.
        reranks: of named recipes, which `recipes` lists too.
        tenancy: who may call; by default anybody.
        max_body_bytes: longest request body. Parsing 4 MiB of nothing but tokens or brackets takes
            up to a quarter of a second, in which no other stream gets a token.
        documents: how documents are read, and what they may cost.
        max_json_depth: deepest nesting of arrays and objects in a body.
        max_waiting: answers without a first token; what would be more is refused.
        max_wait_s: for the first token; what would wait longer is refused, what has is ended.
        share_prefixes: of all tenants, who can then tell from the time what others have asked.
        adapter_shares: of an adapter or recipe beside the others of its tenant, 1 by default;
            a reload changes them.
        max_choices: choices (`n` or `best_of`, times prompts) of one request.
        generation_defaults: sampling where a request says nothing.
        default_max_tokens: for completions that name none, as OpenAI's 16. Chat answers may fill
            the context.
        max_timeout_s: largest `timeout_s` a request may ask for.
        metrics_labels: models, and tenants, that metrics tell apart at a time.
        ping_s: a silent stream gets a comment this often, so that proxies keep it open.
        enable_docs: serve /docs and /redoc beside /openapi.json.
    """

    base_names: tuple[str, ...]
    model_root: str = ""
    adapter_roots: tuple[Path, ...] = ()
    adapter_remotes: tuple[str, ...] = ()
    adapter_cache_bytes: int | None = None
    adapter_dirs: tuple[Path, ...] = ()
    recipes: Mapping[str, str | Stack] = field(default_factory=dict)
    fusions: Mapping[str, FusionSpec] = field(default_factory=dict)
    max_fusion_members: int = 8
    reranks: Mapping[str, RerankSpec] = field(default_factory=dict)
    tenancy: Tenancy = field(default_factory=Tenancy)
    max_body_bytes: int = 4 * 2**20
    documents: DocumentSettings = field(default_factory=DocumentSettings)
    max_json_depth: int = 64
    max_waiting: int = 1024
    max_wait_s: float = 300.0
    share_prefixes: bool = False
    adapter_shares: dict[str, float] = field(default_factory=dict)
    max_choices: int = 1024
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    default_max_tokens: int = 16
    max_timeout_s: float = 3600.0
    metrics_labels: int = 100
    ping_s: float = 15.0
    enable_docs: bool = True
