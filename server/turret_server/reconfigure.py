"""turret.toml read again while serving, on SIGHUP or POST /v1/admin/reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace

from turret_server.api.reload import Reloader, Served
from turret_server.api.schema.reload import ReloadAnswer
from turret_server.config import ServeConfig
from turret_server.errors import BadRequest, StartupError, TurretError, Unprocessable
from turret_server.telemetry.logging import logger

# Everything else is built once, at the start.
LIVE = frozenset(
    {
        "adapters",
        "adapter_dirs",
        "adapter_remotes",
        "adapter_roots",
        "admin_keys",
        "api_keys",
        "gateway_keys",
        "metrics_keys",
        "recipes",
    }
)
_TABLES = frozenset({"adapters", "recipes"})  # whose changes are told entry by entry


class ConfigRefused(Unprocessable):
    """The configuration cannot be served; nothing has changed."""

    code = "invalid_configuration"


class Reconfigure:
    """Reads the configuration again and serves it.

    Args:
        config: what the server runs with.
        reread: the same command line and environment over the file as it is now.
        served: what a configuration says that needs no restart; raises StartupError.
        reloader: makes it so.
    """

    def __init__(
        self,
        config: ServeConfig,
        reread: Callable[[], ServeConfig],
        served: Callable[[ServeConfig], Served],
        reloader: Reloader,
    ) -> None:
        self._config, self._reread, self._served, self._reloader = config, reread, served, reloader
        self._running = asyncio.Lock()

    async def __call__(self) -> ReloadAnswer:
        """Read, check, and swap as a whole.

        Raises:
            ConfigRefused: the file cannot be served; nothing has changed.
            TurretError: the engine, or what an adapter is fetched from, does not answer.
        """
        async with self._running:
            try:
                return await self._reload()
            except TurretError as error:
                is_file = error.status < 500 or isinstance(error, StartupError)
                refused = _refused(error) if is_file else error
                fields_ = {"error": str(refused), "param": refused.param}
                logger.error("configuration_not_reloaded", extra={"fields": fields_})
                raise refused from error

    async def _reload(self) -> ReloadAnswer:
        config, served = await asyncio.to_thread(self._read)
        changed = await self._reloader.apply(served)
        differ = [
            f.name
            for f in fields(ServeConfig)
            if getattr(config, f.name) != getattr(self._config, f.name)
        ]
        self._config = replace(self._config, **{name: getattr(config, name) for name in LIVE})
        changed += [name for name in differ if name in LIVE - _TABLES]
        answer = ReloadAnswer(
            changed=changed,
            needs_restart=[name for name in differ if name not in LIVE],
            waiting=self._reloader.waiting(),
        )
        logger.info("configuration_reloaded", extra={"fields": answer.model_dump()})
        return answer

    def _read(self) -> tuple[ServeConfig, Served]:
        config = self._reread()
        if config.is_open and not self._config.is_open:
            raise BadRequest(
                "the configuration leaves the server open",
                "it has no key any more, and the server runs with some",
                "Keep a key, or restart the server.",
                param="api_keys",
            )
        return config, self._served(config)


def _refused(error: TurretError) -> ConfigRefused:
    return ConfigRefused(error.what, error.why, error.fix, param=error.param)
