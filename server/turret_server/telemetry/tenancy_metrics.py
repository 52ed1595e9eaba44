"""Whether tenants and their usage can be read and written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turret_server.telemetry.families import counter, gauge
from turret_server.tenancy.service import Tenancy


class TenancyMetrics(Collector):
    """Health of the database, of the ledger and of the disk below it; nothing without them."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        if self._tenancy.database is not None:
            up = float(not self._tenancy.is_database_down)
            yield gauge("database_up", "1 while the tenants can be read.", (), [((), up)])
        if (ledger := self._tenancy.ledger) is None:
            return
        yield counter(
            "ledger_journal_errors",
            "Beginnings and ends of requests that the disk did not take.",
            (),
            [((), ledger.journal_errors)],
        )
        yield counter(
            "ledger_database_errors",
            "Attempts to carry usage into the database that failed.",
            (),
            [((), ledger.database_errors)],
        )
        yield gauge(
            "ledger_waiting_requests",
            "Requests that have ended and are not in the database yet.",
            (),
            [((), ledger.waiting)],
        )
        disk = shutil.disk_usage(ledger.folder)
        yield gauge("state_disk_bytes", "Size of the ledger's disk.", (), [((), disk.total)])
        yield gauge("state_disk_free_bytes", "Of it free.", (), [((), disk.free)])
