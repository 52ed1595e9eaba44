"""What the first requests on a GPU would wait for, done before the engine says that it is ready."""

from __future__ import annotations

import logging
import time

from turret_server.engine.core import Engine
from turret_server.engine.messages import EngineRequest, Sampling

log = logging.getLogger(__name__)


def warm_up(engine: Engine) -> None:
    """Compile the kernels of every step, and record a graph for every number of rows.

    As many requests as may run at once begin together and end one after another. Half of them are
    greedy, half use every filter, one in three penalties and log-probabilities. What adapters
    launch is compiled and recorded when one is first asked for. The steps count like others.
    """
    began, rows = time.monotonic(), engine.settings.max_running
    for row in range(rows):
        sampling = Sampling(
            temperature=float(row % 2),
            top_k=20,
            top_p=0.9,
            min_p=0.01,
            presence_penalty=float(row % 3 == 0),
            logprobs=0 if row % 3 == 0 else None,
            max_tokens=min(row + 2, engine.max_model_len - 2),
        )
        # Two tokens: the kernels of prompts are others.
        request = EngineRequest(
            id=f"warm-up-{row}", prompt=[0, 0], sampling=sampling, cache_namespace="warm-up"
        )
        engine.submit(request)
    while not engine.idle:
        engine.step()
    log.info("warmed up in %.1f s", time.monotonic() - began)
