"""What a request costs its tenant: reserved, written down before its first byte, settled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from turret_server.telemetry.record import RequestRecord
from turret_server.tenancy.journal import Entry
from turret_server.tenancy.quotas import Reservation
from turret_server.tenancy.service import Tenancy


class Account:
    """One request's.

    Args:
        tenancy: of the server.
        record: of the request; its counts are what is settled.
        reservation: of the tenant's quotas.
    """

    def __init__(self, tenancy: Tenancy, record: RequestRecord, reservation: Reservation) -> None:
        self._tenancy, self._record, self._reservation = tenancy, record, reservation
        self._entry: Entry | None = None

    def read_pages(self, pages: int) -> None:
        """The request brings so many pages of documents.

        Raises:
            QuotaExceeded: they are more than the tenant may send now.
        """
        self._reservation.take(pages=pages)
        self._record.pages += pages

    async def accept(self, prompt_tokens: int, max_tokens: int) -> None:
        """Reserve what the request can use, and write it down; it is accepted from here on.

        Args:
            prompt_tokens: of all prompts, each counted once.
            max_tokens: of all answers together.

        Raises:
            QuotaExceeded, BadRequest: it is more than the tenant may use now, or ever.
            UsageNotRecorded: the disk is full.
        """
        self._reservation.take(tokens=prompt_tokens + max_tokens)
        record, principal = self._record, self._record.principal
        if self._tenancy.ledger is None or principal is None:
            return
        entry = Entry(
            # Not the request id, which the client may choose.
            request=uuid.uuid4().hex,
            event="begin",
            at=int(time.time()),
            tenant=principal.tenant.name,
            key=principal.key,
            model=record.label,
            prompt_tokens=prompt_tokens,
            pages=record.pages,
        )
        await self._tenancy.ledger.begin(entry)
        self._entry = entry

    def settle(self) -> None:
        """The request is over, however it ended."""
        record = self._record
        self._reservation.used = record.prompt_tokens + record.completion_tokens
        if self._entry is None or self._tenancy.ledger is None:
            return
        status = "error" if record.error else "abort" if record.disconnected else "done"
        ended = msgspec.structs.replace(
            self._entry,
            event="end",
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            status=status,
        )
        self._tenancy.ledger.end_soon(ended)


@contextmanager
def account(tenancy: Tenancy, record: RequestRecord) -> Iterator[Account | None]:
    """The account of a request, for as long as it runs; None where nobody has to say who calls.

    Raises:
        QuotaExceeded: the tenant has used up its requests for now.
    """
    principal = record.principal
    if principal is None:
        yield None
        return
    with tenancy.meters.of(principal.tenant).enter(principal.tenant) as reservation:
        found = Account(tenancy, record, reservation)
        try:
            yield found
        finally:
            found.settle()
