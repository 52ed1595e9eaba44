"""The Ray Serve application: replicas behind an entrance, on a new cluster or a given one."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from rich.console import Console

from turret_server.config import ServeConfig
from turret_server.errors import StartupError
from turret_server.plan import Plan, make_plan
from turret_server.scaleout.changes import ChangeLog
from turret_server.server import warn_if_open

APPLICATION = "turret"
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # replicas log their requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """What `turret deploy ray` was asked for beside the server's own settings.

    Attributes:
        replicas: at the least.
        max_replicas: at the most; as many as `replicas` does not scale.
        target_requests: requests in flight that a replica should have on average, when scaling.
        cpus: cores of a replica; 0 shares out those of this machine.
        gpus: of a replica; None is one for each process of the engine where the cluster has any.
        entrances: actors that requests pass through.
        affinity: send requests to where their adapters are.
        slack: requests in flight that never keep a replica from its own adapters.
        address: of a running cluster; "" starts one on this machine.
        object_store_mib: of a cluster that is started.
    """

    replicas: int = 2
    max_replicas: int = 2
    target_requests: float = 32
    cpus: float = 0
    gpus: float | None = None
    entrances: int = 1
    affinity: bool = True
    slack: int = 8
    address: str = ""
    object_store_mib: int = 256


def run(config: ServeConfig, scale: ScaleConfig) -> None:
    """Deploy, and serve until a signal.

    Raises:
        StartupError: Ray is not installed, or what was asked for cannot be served.
    """
    console = Console(stderr=True)
    _guard()
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise StartupError(
            "Ray Serve is not installed", str(error), "pip install 'turret[ray]'"
        ) from error
    # Once, here: what cannot be found should not be found out by every replica.
    plan = make_plan(config, console)
    warn_if_open(config, console)
    config = _on_free_port(config)
    scale = _with_cpus(scale)
    with _cluster(scale):
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's own
            signal.signal(number, lambda *_: stop.set())
        if scale.gpus is None:
            has_gpus = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
            scale = changed(scale, gpus=float(config.tensor_parallel if has_gpus else 0))
        serve.start(
            http_options={"host": config.host, "port": config.port},
            logging_config=_QUIET,
        )
        try:
            with console.status(f"starting {scale.replicas} replicas"):
                serve.run(_application(plan, config, scale), name=APPLICATION, route_prefix="/")
            most = "" if scale.max_replicas <= scale.replicas else f" to {scale.max_replicas}"
            console.print(
                f"[bold]Turret[/] serves [bold]{plan.base_names[0]}[/] with {scale.replicas}{most} "
                f"replicas on Ray\nlistening on http://{config.host}:{config.port}",
                soft_wrap=True,
            )
            stop.wait()
        except RuntimeError as error:
            raise StartupError(
                "the replicas could not be started", str(error), "See their messages above."
            ) from error
        finally:
            serve.delete(APPLICATION)
            if not scale.address:
                serve.shutdown()


def _guard() -> None:
    """What has to be in the environment before Ray is imported.

    Ray's own ports run what they are sent, so nobody may reach them without a secret; they listen
    on every address of the machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default engines would yield to anything
    # Events pass between actors as messages in the place of objects: half the processor time.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _cluster(scale: ScaleConfig) -> Iterator[None]:
    import ray

    if scale.address:
        ray.init(address=scale.address, log_to_driver=True)
    else:
        cores = max(os.cpu_count() or 1, round(scale.cpus * scale.replicas))
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=cores,
            object_store_memory=scale.object_store_mib << 20,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _application(plan: Plan, config: ServeConfig, scale: ScaleConfig) -> Any:
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    from turret_server.scaleout import router
    from turret_server.scaleout.entrance import Entrance
    from turret_server.scaleout.replica import Replica

    deployment: Any = serve.deployment  # annotated as a decorator alone
    light = {"logging_config": _QUIET, "ray_actor_options": {"num_cpus": 0}}
    size: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.max_replicas > scale.replicas:
        size = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.replicas,
                max_replicas=scale.max_replicas,
                target_ongoing_requests=scale.target_requests,
            )
        }
    log = deployment(ChangeLog, name="change-log", num_replicas=1, **light).bind()
    replicas = deployment(
        Replica,
        name="replica",
        # A server refuses by itself what is too much, and is fair among tenants; a queue before it
        # would be neither.
        max_ongoing_requests=config.max_running + config.max_waiting + 64,
        max_constructor_retry_count=3,
        graceful_shutdown_timeout_s=config.drain_s,
        logging_config=_QUIET,
        request_router_config={
            "request_router_class": router.PATH,
            "request_router_kwargs": {"slack": scale.slack, "affinity": scale.affinity},
        },
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        **size,
    ).bind(_server_config(config, scale), Path.cwd(), log)
    entrances = deployment(
        Entrance,
        name="entrance",
        num_replicas=scale.entrances,
        max_ongoing_requests=1 << 16,
        graceful_shutdown_timeout_s=config.drain_s,
        **light,
    )
    max_body_bytes = config.max_body_bytes + (config.max_document_mib << 20)
    return entrances.bind(replicas, plan.base_names, max_body_bytes)


def _server_config(config: ServeConfig, scale: ScaleConfig) -> ServeConfig:
    """Of one replica: as many threads as it has cores, so that replicas do not share any."""
    return config if config.threads else changed(config, threads=max(1, int(scale.cpus)))


def _with_cpus(scale: ScaleConfig) -> ScaleConfig:
    share = max(1, (os.cpu_count() or 1) // scale.replicas)
    return scale if scale.cpus else changed(scale, cpus=float(share))


def _on_free_port(config: ServeConfig) -> ServeConfig:
    """Ray wants a number where `--port 0` takes any."""
    if config.port:
        return config
    with socket.socket() as probe:
        probe.bind((config.host, 0))
        return changed(config, port=probe.getsockname()[1])
