"""The flags of every command that serves."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from turret_server.cache import state_root
from turret_server.cli import document_flags as flags
from turret_server.cli.config_file import load_config
from turret_server.config import ServeConfig, parse_pairs

_MODEL, _ADAPTERS, _HTTP, _ENGINE = "Model", "Adapters", "HTTP", "Engine"


def serve_config(
    model: Annotated[
        str, typer.Argument(help="A folder, a Hugging Face id, or [bold]demo[/].")
    ] = "demo",
    served_name: Annotated[
        list[str] | None,
        typer.Option(help="Name(s) of the base model for clients.", rich_help_panel=_MODEL),
    ] = None,
    auxiliary: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL: a model, best of the same vocabulary, that requests may fuse with "
            "this one. May be repeated.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL: a sequence-classification model that reranks answers, such as Cappy; "
            "or a table of turret.toml's scorers, as JSON. May be repeated.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=SOURCE: serve an adapter; a folder, an archive, a Hugging Face id or a URL; "
            "or a table of turret.toml's adapters, as JSON. May be repeated.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = None,
    adapter_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of adapter folders, each served under its name and read when first asked "
            "for; thousands are fine. May be repeated.",
            rich_help_panel=_ADAPTERS,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder that run-time loads may read. \\[default: this folder, the cache]",
            rich_help_panel=_ADAPTERS,
            show_default=False,
        ),
    ] = None,
    adapter_remote: Annotated[
        list[str] | None,
        typer.Option(
            help="URL prefix that run-time loads may fetch from, such as hf://owner or "
            "s3://bucket/folder. May be repeated. \\[default: none]",
            rich_help_panel=_ADAPTERS,
            show_default=False,
        ),
    ] = None,
    adapter_cache_gib: Annotated[
        float,
        typer.Option(
            min=0,
            help="Disk for fetched and unpacked adapters; those used least recently go first, and "
            "what a running server serves stays.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = 10.0,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=EXPRESSION: a stack of adapters as a model, e.g. formal-sql=formal:0.7+sql; "
            "or a table of turret.toml's recipes, as JSON.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = None,
    max_resident_adapters: Annotated[
        int, typer.Option(min=1, help="Adapters on the device at once.", rich_help_panel=_ADAPTERS)
    ] = 64,
    adapter_rank_rows: Annotated[
        int,
        typer.Option(
            min=2,
            help="Ranks on the device at once, summed over adapters, per linear.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = 1024,
    adapter_ternary_rows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="More ranks, for compressed adapters (ComPEFT), which then take two bits a value; "
            "0 unpacks them. Default: on a GPU as many as --adapter-rank-rows, on a CPU 0.",
            show_default=False,
            rich_help_panel=_ADAPTERS,
        ),
    ] = None,
    host_adapter_gib: Annotated[
        float,
        typer.Option(
            min=0,
            help="Memory for adapters that are ready but not on the device; others are read again.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = 1.0,
    adapter_delta_mib: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB of sparse deltas on the device; as much again for changed token rows.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = 1024,
    sparse_mlp_mib: Annotated[
        int,
        typer.Option(
            min=0,
            help="MiB of second copies of MLP weights, with which CATS skips neurons while such an "
            "adapter is resident; layers beyond it are masked: the same result, no faster.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = 1024,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=load_config, is_eager=True, help="A turret.toml; flags and TURRET_* go first."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_HTTP)] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on.", rich_help_panel=_HTTP)
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that may ask. May be repeated.", rich_help_panel=_HTTP),
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that may also load and unload adapters.", rich_help_panel=_HTTP),
    ] = None,
    gateway_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that may ask, and say for whom (x-gateway-inference-fairness-id). May be "
            "repeated.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    metrics_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that sees tenants in /metrics, as --admin-key does. May be repeated.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    metrics_labels: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="Models, and tenants, with series of their own in /metrics; more are counted as "
            "'other'.",
            rich_help_panel=_HTTP,
        ),
    ] = 100,
    otlp_endpoint: Annotated[
        str,
        typer.Option(
            help="Collector of OpenTelemetry traces, such as http://127.0.0.1:4318. Needs "
            "turret\\[otel]. \\[default: OTEL_EXPORTER_OTLP_ENDPOINT]",
            rich_help_panel=_HTTP,
            show_default=False,
        ),
    ] = "",
    database: Annotated[
        str | None,
        typer.Option(
            help="Tenants and their keys: a path for SQLite, or postgresql+psycopg://... "
            "(`turret tenants`, `turret keys`).",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Tenants share cached prompts; each can then tell from the time what others ask.",
            rich_help_panel=_HTTP,
        ),
    ] = False,
    state_dir: Annotated[
        Path,
        typer.Option(
            help="Folder of what must not be lost: usage on its way into the database.",
            rich_help_panel=_HTTP,
        ),
    ] = state_root(),  # noqa: B008 - where it is does not change
    max_body_bytes: Annotated[
        int, typer.Option(min=1024, help="Longest request body.", rich_help_panel=_HTTP)
    ] = 4 << 20,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds that open requests get at the end.", rich_help_panel=_HTTP
        ),
    ] = 30.0,
    max_document_mib: flags.MaxDocumentMib = 16,
    document_remote: flags.DocumentRemote = None,
    document_workers: flags.DocumentWorkers = 0,
    document_pages: flags.DocumentPages = 100,
    document_megapixels: flags.DocumentMegapixels = 50,
    document_timeout_s: flags.DocumentTimeoutS = 120.0,
    ocr: flags.Ocr = "rapidocr",
    ocr_language: flags.OcrLanguage = "eng",
    task: flags.Task = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_ENGINE)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float16 or float32.", rich_help_panel=_ENGINE)
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(
            help="none, int8, int4 or fp8 (Hopper): rounds the base's linears as they are loaded; "
            "adapters stay as they are. Needs turret\\[quantization].",
            rich_help_panel=_ENGINE,
        ),
    ] = "none",
    max_model_len: Annotated[
        int,
        typer.Option(min=0, help="Longest context; 0 = the model's own.", rich_help_panel=_ENGINE),
    ] = 0,
    kv_cache_gib: Annotated[
        float,
        typer.Option(
            min=0,
            help="Memory for keys and values, in each process; 0 = 1 GiB on a CPU, most of what is "
            "free on a GPU.",
            rich_help_panel=_ENGINE,
        ),
    ] = 0.0,
    auxiliary_kv_gib: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Memory for keys and values of each auxiliary model.",
            rich_help_panel=_ENGINE,
        ),
    ] = 0.25,
    max_running: Annotated[
        int, typer.Option(min=1, help="Requests in one batch.", rich_help_panel=_ENGINE)
    ] = 64,
    max_step_tokens: Annotated[
        int,
        typer.Option(
            min=16,
            help="Tokens in one step: lower for even streaming, higher for long prompts.",
            rich_help_panel=_ENGINE,
        ),
    ] = 256,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=1,
            help="Answers that may wait; with --database, one tenant's as many as are left free.",
            rich_help_panel=_ENGINE,
        ),
    ] = 1024,
    max_wait_s: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Seconds for the first token: who would wait longer is refused at once.",
            rich_help_panel=_ENGINE,
        ),
    ] = 300.0,
    max_fusion_members: Annotated[
        int,
        typer.Option(
            min=1,
            help="Models whose logits one request may fuse, its own among them.",
            rich_help_panel=_ENGINE,
        ),
    ] = 8,
    overlap: Annotated[
        str,
        typer.Option(
            help="on, off, or auto (on a GPU): prepares a step while the one before it runs.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads; 0 = all.", rich_help_panel=_ENGINE)
    ] = 0,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share the model and its adapters, each on its own GPU, or all "
            "on the CPU.",
            rich_help_panel=_ENGINE,
        ),
    ] = 1,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> ServeConfig:
    """What was asked for."""
    return ServeConfig(
        model=model,
        served_names=tuple(served_name or ()),
        adapters=parse_pairs(adapter or (), "--adapter"),
        adapter_roots=tuple(adapter_root or (Path.cwd(),)),
        adapter_remotes=tuple(adapter_remote or ()),
        adapter_dirs=tuple(adapter_dir or ()),
        adapter_cache_gib=adapter_cache_gib,
        recipes=parse_pairs(recipe or (), "--recipe"),
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        admin_keys=tuple(admin_key or ()),
        gateway_keys=tuple(gateway_key or ()),
        metrics_keys=tuple(metrics_key or ()),
        metrics_labels=metrics_labels,
        otlp_endpoint=otlp_endpoint,
        database=database,
        share_prefixes=share_prefixes,
        state_dir=state_dir,
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_model_len=max_model_len,
        kv_cache_gib=kv_cache_gib,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_waiting=max_waiting,
        max_wait_s=max_wait_s,
        max_fusion_members=max_fusion_members,
        auxiliaries=parse_pairs(auxiliary or (), "--auxiliary"),
        auxiliary_kv_gib=auxiliary_kv_gib,
        scorers=parse_pairs(scorer or (), "--scorer"),
        max_resident_adapters=max_resident_adapters,
        adapter_rank_rows=adapter_rank_rows,
        adapter_ternary_rows=adapter_ternary_rows,
        host_adapter_gib=host_adapter_gib,
        adapter_delta_mib=adapter_delta_mib,
        sparse_mlp_mib=sparse_mlp_mib,
        overlap=overlap,
        threads=threads,
        tensor_parallel=tensor_parallel,
        max_body_bytes=max_body_bytes,
        max_document_mib=max_document_mib,
        document_remotes=tuple(document_remote or ()),
        document_workers=document_workers,
        document_pages=document_pages,
        document_megapixels=document_megapixels,
        document_timeout_s=document_timeout_s,
        ocr=ocr,
        ocr_language=ocr_language,
        tasks=parse_pairs(task or (), "--task"),
        drain_s=drain_s,
        log_level=log_level,
    )


def take_serve_flags(command: Any) -> Any:
    """Give a command the flags of `serve_config` in the place of its last parameter, `**flags`."""
    shared = inspect.signature(serve_config, eval_str=True).parameters.values()
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command.__signature__ = inspect.Signature([*shared, *own])
    hints = get_type_hints(serve_config, include_extras=True)
    command.__annotations__ = hints | get_type_hints(command, include_extras=True)
    return command
