"""The scorers of a server, for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from turret_server.scorer.link import ScorerLink
from turret_server.scorer.messages import ScorerSettings
from turret_server.scorer.scorer import Scorer
from turret_server.scorer.text import scorer_text


@asynccontextmanager
async def running_scorers(
    settings: Mapping[str, ScorerSettings], max_waiting: int
) -> AsyncIterator[dict[str, Scorer]]:
    """Start a process for each scorer, and end them all.

    Args:
        settings: by name.
        max_waiting: texts that may wait for each.

    Raises:
        StartupError: one cannot be served.
    """
    scorers = {}
    async with AsyncExitStack() as links:
        for name, one in settings.items():
            link = ScorerLink(name, one)
            links.push_async_callback(link.close)
            ready = await link.start()
            text = await asyncio.to_thread(
                scorer_text,
                Path(one.model),
                ready.max_length,
                ready.vocab_size,
                is_encoder=ready.is_encoder,
            )
            scorers[name] = Scorer(name, text, link, ready.num_labels, max_waiting)
        yield scorers
