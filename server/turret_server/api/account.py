"""What a request costs its tenant: reserved, written down before its first byte, settled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from turret_server.api.generation import Generation
from turret_server.telemetry.record import RequestRecord
from turret_server.tenancy.journal import Entry
from turret_server.tenancy.quotas import Reservation
from turret_server.tenancy.service import Tenancy


class Account:
    """One request's.

    Args:
        tenancy: of the server.
        record: of the request; its counts are what is settled.
        reservation: of the tenant's quotas; None on an open server, where all of this is nothing.

    Attributes:
        failed: it ended with an error; `record` hears of that when the client is told, which may be
            later.
    """

    def __init__(
        self, tenancy: Tenancy, record: RequestRecord, reservation: Reservation | None
    ) -> None:
        self._tenancy, self._record, self._reservation = tenancy, record, reservation
        self._entry: Entry | None = None
        self._accepted = self.failed = False

    def check(self, *, tokens: int, pages: int) -> None:
        """Is there enough for a request that takes at least so much? Nothing is taken.

        Raises:
            QuotaExceeded, BadRequest: it is more than the tenant may use now, or ever.
        """
        if self._reservation is not None:
            self._reservation.check(tokens=tokens, pages=pages)

    def read_pages(self, pages: int) -> None:
        """The request brought so many pages of documents.

        Raises:
            QuotaExceeded: they are more than the tenant may send now.
        """
        self._record.pages = pages
        if self._reservation is not None:
            self._reservation.take(pages=pages)

    async def accept(self, generation: Generation) -> None:
        """Accept a generation; see `accept_tokens`.

        Raises:
            QuotaExceeded, BadRequest, UsageNotRecorded: as `accept_tokens`.
        """
        # Every member of a fusion computes its prompt, and the answer.
        longest = sum(
            choice.request.sampling.max_tokens * (1 + len(choice.members))
            for choice in generation.choices
        )
        await self.accept_tokens(sum(generation.prompt_tokens), longest, generation.member_tokens)

    async def accept_tokens(
        self, prompt_tokens: int, most_tokens: int = 0, member_tokens: int = 0
    ) -> None:
        """Reserve what a request can use, and write it down; it is accepted from here on.

        Args:
            prompt_tokens: that it brings.
            most_tokens: that may be generated, of all answers.
            member_tokens: of the prompts of a fusion's members.

        Raises:
            QuotaExceeded, BadRequest: it is more than the tenant may use now, or ever.
            UsageNotRecorded: the disk is full.
        """
        record, principal = self._record, self._record.principal
        if self._reservation is None or principal is None:
            return
        record.member_tokens = member_tokens
        self._reservation.take(tokens=prompt_tokens + member_tokens + most_tokens)
        if self._tenancy.ledger is None:
            self._accepted = True
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
            member_tokens=record.member_tokens,
            pages=record.pages,
        )
        await self._tenancy.ledger.begin(entry)
        self._entry, self._accepted = entry, True

    def settle(self) -> None:
        """The request is over, however it ended."""
        record = self._record
        if self._reservation is not None and self._accepted:
            tokens = record.prompt_tokens + record.completion_tokens + record.member_tokens
            self._reservation.used = tokens
        if self._entry is None or self._tenancy.ledger is None:
            return
        is_cut = record.disconnected or "abort" in record.finish_reasons
        status = "error" if self.failed or record.error else "abort" if is_cut else "done"
        ended = msgspec.structs.replace(
            self._entry,
            event="end",
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            member_tokens=record.member_tokens,
            status=status,
        )
        self._tenancy.ledger.end_soon(ended)


@contextmanager
def account(tenancy: Tenancy, record: RequestRecord) -> Iterator[Account]:
    """The account of a request, for as long as it runs.

    Raises:
        QuotaExceeded: the tenant has used up its requests for now.
    """
    principal = record.principal
    if principal is None:
        yield Account(tenancy, record, None)
        return
    # As it is now: who calls was found out before the body came, which may take minutes.
    tenant = tenancy.tenants.get(principal.tenant.name, principal.tenant)
    with tenancy.meters.of(tenant).enter(tenant) as reservation:
        found = Account(tenancy, record, reservation)
        try:
            yield found
        except Exception:  # any failure, raised again: the ledger tells it from an abort
            found.failed = True
            raise
        finally:
            found.settle()
