"""Affinity as a request router of Ray Serve: it knows the replicas and their queues already.

Ray drops a dead replica from the candidates, asks one whose queue is full again later, and counts
what is in flight; only the order of preference is ours (`affinity`).
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from turret_server.scaleout.affinity import order
from turret_server.scaleout.wire import Forwarded

PATH = f"{__name__}:AffinityRouter"


class AffinityRouter(RequestRouter):
    """Prefers the replica that has a request's adapters and is not overloaded.

    Not FIFO: a replica that was chosen for one request's adapters is of no use to another's.
    """

    def initialize_state(self, *, slack: int = 8, affinity: bool = True, **kwargs: Any) -> None:
        """Take the arguments of the deployment's `RequestRouterConfig`.

        Args:
            slack: see `affinity.order`.
            affinity: false balances loads alone.
        """
        self._slack, self._affinity = slack, affinity

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a request; each rank is one replica."""
        names: tuple[str, ...] = ()
        avoid: frozenset[str] = frozenset()
        if pending_request is not None:
            # Else Ray would ask again and again without a pause while all are busy.
            pending_request.routing_context.should_backoff = True
            if pending_request.args and isinstance(pending_request.args[0], Forwarded):
                request = pending_request.args[0]
                names, avoid = request.names if self._affinity else (), request.avoid
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        # Nothing in the cache: nobody was sent there in the last seconds.
        lengths = self.replica_queue_len_cache
        loads = {name: lengths.get(r.replica_id) or 0 for name, r in replicas.items()}
        ranked = sorted(order(names, loads, self._slack), key=lambda name: name in avoid)
        return [[replicas[name]] for name in ranked]
