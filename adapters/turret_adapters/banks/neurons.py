"""Second copies of MLP weights, neuron by neuron, in the layers that some adapter thresholds."""

from __future__ import annotations

import logging
from collections import Counter

from torch import Tensor

from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels.sparse_mlp import pack_neurons

log = logging.getLogger(__name__)


class NeuronCopies:
    """What `sparse_mlp` reads beside the packed weights, as long as an adapter needs it.

    A copy takes as much memory as the layer's up and down, on a GPU as its down. One thread
    acquires and releases, another reads `at`: a layer that is read was acquired before and is
    released after.

    Args:
        shape: the base model; without its weights, or where the kernel would not help, there are no
            copies.

    Attributes:
        layout: counts the copies ever made; a graph recorded before a new one is stale.
    """

    def __init__(self, shape: ModelShape):
        self.layout = 0
        self._weight = shape.weight
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
        before = len(self._copies)
        self._uses.update(layers)  # all of them first: `release` undoes a failure half way, too
        for layer in layers:
            if self._weight is None or layer in self._copies:
                continue
            up, down = (self._weight(Site(layer, m)) for m in (Module.UP, Module.DOWN))
            copy = pack_neurons(up, down)
            if copy is not None:
                self._copies[layer] = copy
                self.layout += 1
        if len(self._copies) > before:
            log.info(
                "sparse MLPs: a second copy of the weights behind the gate in %d layers, %d MB",
                len(self._copies),
                self.num_bytes >> 20,
            )

    def release(self, layers: list[int]) -> None:
        """Undo one `acquire`; the last user's copies go."""
        for layer in layers:
            self._uses[layer] -= 1
            if self._uses[layer] <= 0:
                del self._uses[layer]
                self._copies.pop(layer, None)
