"""Settings of `turret serve`: flags before environment (TURRET_*) before turret.toml.

The command line library resolves that order: the file only supplies its defaults. A key of the
file is the name of a field below; what has names of its own, such as adapters, is a table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turret_server.cache import state_root
from turret_server.errors import StartupError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Everything `turret serve` was asked for. Lengths are tokens.

    `auxiliaries` are models by name, each as `model` is, `scorers` such models or tables
    (`sources.scorer`), `adapters` sources or tables (`sources.settings`), `recipes` expressions or
    tables (`pipeline.recipe_config`), `tasks` tables (`pipeline.documents.tasks`); tables are JSON.
    """

    model: str
    served_names: tuple[str, ...] = ()
    adapters: dict[str, str] = field(default_factory=dict)
    adapter_roots: tuple[Path, ...] = ()
    adapter_remotes: tuple[str, ...] = ()
    adapter_dirs: tuple[Path, ...] = ()
    adapter_cache_gib: float = 10.0
    recipes: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    gateway_keys: tuple[str, ...] = ()
    metrics_keys: tuple[str, ...] = ()
    metrics_labels: int = 100
    otlp_endpoint: str = ""
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    max_model_len: int = 0
    kv_cache_gib: float = 0.0
    max_running: int = 64
    max_step_tokens: int = 256
    max_waiting: int = 1024
    max_wait_s: float = 300.0
    max_fusion_members: int = 8
    auxiliaries: dict[str, str] = field(default_factory=dict)
    auxiliary_kv_gib: float = 0.25
    scorers: dict[str, str] = field(default_factory=dict)
    max_resident_adapters: int = 64
    adapter_rank_rows: int = 1024
    adapter_ternary_rows: int | None = None
    host_adapter_gib: float = 1.0
    adapter_delta_mib: int = 1024
    sparse_mlp_mib: int = 1024
    overlap: str = "auto"
    threads: int = 0
    tensor_parallel: int = 1
    database: str | None = None
    share_prefixes: bool = False
    state_dir: Path = field(default_factory=state_root)
    max_body_bytes: int = 4 << 20
    max_document_mib: int = 16
    document_remotes: tuple[str, ...] = ()
    document_workers: int = 0
    document_pages: int = 100
    document_megapixels: int = 50
    document_timeout_s: float = 120.0
    ocr: str = "rapidocr"
    ocr_language: str = "eng"
    tasks: dict[str, str] = field(default_factory=dict)
    drain_s: float = 30.0
    log_level: str = "info"

    @property
    def is_open(self) -> bool:
        """No key is needed."""
        return not (self.api_keys or self.admin_keys or self.gateway_keys or self.database)

    @property
    def adapter_cache_bytes(self) -> int:
        """Disk for fetched adapters."""
        return int(self.adapter_cache_gib * 2**30)


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The settings of a turret.toml.

    Args:
        path: the file.
        known: names of the settings it may hold.

    Raises:
        StartupError: it cannot be read, or holds a setting that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(
            f"the configuration {str(path)!r} cannot be read", str(error), "Correct the file."
        ) from error
    for name in values:
        if name not in known:
            raise StartupError(
                f"the configuration {str(path)!r} has an unknown setting {name!r}",
                f"known are {', '.join(sorted(known))}",
                "Correct or remove it.",
            )
    return values


def parse_pairs(pairs: Collection[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` strings as a dict.

    Raises:
        StartupError: one has no name or no value, or a name comes twice.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value or name in result:
            raise StartupError(
                f"{flag} {pair!r} is not understood",
                "the name comes twice" if name in result else "it has the form NAME=VALUE",
                f"Write {flag} my-adapter=path/to/folder.",
            )
        result[name] = value
    return result
