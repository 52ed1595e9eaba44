"""`turret deploy`: servers on an engine for many machines."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from turret_server.cli.config_file import ENVIRONMENT
from turret_server.cli.serve_flags import serve_config, take_serve_flags

app = typer.Typer(help="Serve with several replicas on an existing engine.", no_args_is_help=True)

_PANEL = "Replicas"


@take_serve_flags
def ray(
    *,
    replicas: Annotated[
        int,
        typer.Option(min=1, help="Replicas, at the least.", rich_help_panel=_PANEL),
    ] = 2,
    max_replicas: Annotated[
        int,
        typer.Option(
            min=0,
            help="Replicas, at the most: more are started while requests pile up; 0 = no scaling.",
            rich_help_panel=_PANEL,
        ),
    ] = 0,
    target_ongoing_requests: Annotated[
        float,
        typer.Option(
            min=0,
            help="Requests in flight that scaling aims at, for each replica; 0 = half of "
            "--max-running.",
            rich_help_panel=_PANEL,
        ),
    ] = 0,
    cpus_per_replica: Annotated[
        float,
        typer.Option(
            min=0,
            help="Cores that a replica reserves, and its --threads; 0 = an equal share of this "
            "machine's.",
            rich_help_panel=_PANEL,
        ),
    ] = 0,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs that a replica reserves. \\[default: --tensor-parallel where there are any]",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    affinity: Annotated[
        bool,
        typer.Option(
            help="Send requests to the replica that has their adapters; else loads alone are "
            "balanced.",
            rich_help_panel=_PANEL,
        ),
    ] = True,
    affinity_slack: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests in flight up to which a replica always gets those of its own adapters; "
            "beyond, those above 1.25 times the mean go elsewhere.",
            rich_help_panel=_PANEL,
        ),
    ] = 8,
    entrances: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that requests and their events pass through.",
            rich_help_panel=_PANEL,
        ),
    ] = 1,
    ray_address: Annotated[
        str,
        typer.Option(
            help="A running cluster, such as auto or ray://host:10001; without it one is started "
            "on this machine, and ends with the command.",
            rich_help_panel=_PANEL,
        ),
    ] = "",
    object_store_mib: Annotated[
        int,
        typer.Option(
            min=80,
            help="Shared memory of a cluster that is started; long bodies pass through it.",
            rich_help_panel=_PANEL,
        ),
    ] = 256,
    **flags: Any,
) -> None:
    """Serve with several replicas on Ray Serve, behind one address.

    Requests go to the replica that has their adapters, and spill where that one is busy. A replica
    that dies is replaced; what it had not begun to answer is answered by another. Takes every
    flag of `turret serve`, for each replica. Needs turret\\[ray].
    """
    from turret_server.scaleout.application import ScaleConfig, run

    config = serve_config(**flags)
    run(
        config,
        ScaleConfig(
            replicas=replicas,
            max_replicas=max(max_replicas, replicas),
            target_requests=target_ongoing_requests or max(1.0, config.max_running / 2),
            cpus=cpus_per_replica,
            gpus=gpus_per_replica,
            entrances=entrances,
            affinity=affinity,
            slack=affinity_slack,
            address=ray_address,
            object_store_mib=object_store_mib,
        ),
    )


# Every flag is read from the environment, too, as for `turret serve`.
app.command(context_settings={"auto_envvar_prefix": ENVIRONMENT})(ray)
