"""Second copies of MLP weights, neuron by neuron, in the layers that some adapter thresholds."""

from __future__ import annotations

import logging
from collections import Counter

from torch import Tensor

from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels.sparse_mlp import neurons_bytes, pack_neurons

log = logging.getLogger(__name__)


class NeuronCopies:
    """What `sparse_mlp` reads beside the packed weights, as long as an adapter needs it.

    A copy takes as much memory as the layer's up and down, on a GPU as its down. Layers beyond
    `max_bytes` get none: all their neurons are computed and the dead ones masked. One thread
    acquires and releases, another reads `at`: a layer that is read was acquired before and is
    released after.

    Args:
        shape: the base model; without its weights, where they are quantized, or where the kernel
            would not help, there are no copies.
        max_bytes: of all copies together.

    Attributes:
        layout: counts the copies ever made; a graph recorded before a new one is stale.
    """

    def __init__(self, shape: ModelShape, max_bytes: int):
        self.layout = 0
        self._max_bytes = max_bytes
        self._weight = None if shape.is_quantized else shape.weight
        self._uses: Counter[int] = Counter()
        self._copies: dict[int, Tensor] = {}

    def at(self, layer: int) -> Tensor | None:
        """The copy of a layer, as `pack_neurons` made it; None where there is none."""
        return self._copies.get(layer)

    @property
    def num_bytes(self) -> int:
        """Memory of all copies."""
        return sum(copy.nbytes for copy in self._copies.values())

    def acquire(self, layers: list[int]) -> None:
        """Somebody thresholds these layers: copy those that nobody did before."""
        before, missing = len(self._copies), 0  # missing: bytes that found no room
        self._uses.update(layers)  # all of them first: `release` undoes a failure half way, too
        for layer in layers:
            if self._weight is None or layer in self._copies:
                continue
            up, down = (self._weight(Site(layer, m)) for m in (Module.UP, Module.DOWN))
            if self.num_bytes + (size := neurons_bytes(up, down)) > self._max_bytes:
                missing += size
            elif (copy := pack_neurons(up, down)) is not None:
                self._copies[layer] = copy
                self.layout += 1
        if len(self._copies) > before:
            log.info(
                "sparse MLPs: a second copy of the weights behind the gate in %d layers, %d MiB",
                len(self._copies),
                self.num_bytes >> 20,
            )
        if missing:
            log.warning(
                "sparse MLPs: dead neurons are skipped in %d of %d layers and masked in the rest: "
                "the same result, no faster. Second copies of all weights take %d MiB, and there "
                "are %d. Restart with --sparse-mlp-mib %d to skip everywhere.",
                sum(layer in self._copies for layer in layers),
                len(layers),
                _mib(self.num_bytes + missing),
                self._max_bytes >> 20,
                _mib(self.num_bytes + missing),
            )

    def release(self, layers: list[int]) -> None:
        """Undo one `acquire`; the last user's copies go."""
        for layer in layers:
            self._uses[layer] -= 1
            if self._uses[layer] <= 0:
                del self._uses[layer]
                self._copies.pop(layer, None)


def _mib(num_bytes: int) -> int:
    return -(-num_bytes // (1 << 20))
