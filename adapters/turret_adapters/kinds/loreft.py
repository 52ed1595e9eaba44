"""LoReFT: low-rank edits of hidden states (Wu et al., 2024, arXiv 2404.03592, eq. 2).

`h <- h + R^T (W h + b - R h)` for the output h of a layer; DiReFT: `h + R^T (W h + b)` (eq. 3). At
the first f and the last l positions of the prompt, or at all positions.

pyreft saves pickles without the positions. Read is turret_adapter.json {"kind": "loreft",
"version": 1, "rank": 4, "layers": [8, 15], "positions": "f1+l1", "method": "loreft"} and
adapter.safetensors with pyreft's tensors by layer: `layers.{i}.weight` [rank, hidden],
`layers.{i}.bias` [rank], `layers.{i}.rotate_layer` [hidden, rank].
"""

from __future__ import annotations

import re

from torch import Tensor

from turret_adapters.components import Component, LowRank, Offset
from turret_adapters.errors import listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.own_format import CONFIG_NAME, WEIGHTS_NAME, OwnConfig, is_own
from turret_adapters.positions import Positions
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_NAME = "loreft"
_FIELDS = frozenset({"rank", "layers", "positions", "method"})
_METHODS = ("loreft", "direft")
_POSITIONS = re.compile(r"(?:f([1-9]\d{0,5}))?(\+)?(?:l([1-9]\d{0,5}))?", re.ASCII)


class _Reft:
    """One adapter's folder."""

    def __init__(self, files: AdapterFiles):
        config = self.config = OwnConfig(files)
        config.check_fields(_FIELDS)
        self.rank = config.get("rank")
        if type(self.rank) is not int or self.rank < 1:
            raise config.malformed(f"rank is {quote(self.rank)}, not a positive integer")
        self.layers = self._layers()
        self.positions = self._positions()
        self.method = config.get("method") or "loreft"
        if self.method not in _METHODS:
            raise config.unsupported(
                f"method is {quote(self.method)}, none of {listing(list(_METHODS))}"
            )
        self._file = files.tensors(WEIGHTS_NAME)
        wanted = {
            f"layers.{layer}.{name}"
            for layer in self.layers
            for name in ("weight", "bias", "rotate_layer")
        }
        if missing := sorted(wanted - self._file.infos.keys()):
            raise self.malformed(f"{WEIGHTS_NAME} has no {listing(missing)}")
        if left := sorted(self._file.infos.keys() - wanted):
            raise config.unsupported(
                f"{WEIGHTS_NAME} holds {listing(left)}, which {CONFIG_NAME} does not explain",
                "Store one intervention for each layer that is listed.",
            )

    def _layers(self) -> list[int]:
        layers = self.config.get("layers")
        is_list = isinstance(layers, list) and all(type(x) is int and x >= 0 for x in layers)
        if not is_list or not layers or len(set(layers)) != len(layers):
            raise self.config.malformed("layers is no list of different layer numbers")
        return sorted(layers)

    def _positions(self) -> Positions | None:
        text = self.config.get("positions")
        if text == "all":
            return None
        found = _POSITIONS.fullmatch(text) if isinstance(text, str) else None
        if found is None or not text or bool(found[2]) != bool(found[1] and found[3]):
            raise self.config.malformed(
                f"positions is {quote(text)}", 'Write "f1+l1", "f3", "l2" (pyreft\'s), or "all".'
            )
        return Positions(first=int(found[1] or 0), last=int(found[3] or 0))

    def components(self, shape: ModelShape) -> list[Component]:
        if self.layers[-1] >= shape.num_layers:
            raise self.config.unsupported(
                f"it edits layer {self.layers[-1]}, and this base has {shape.num_layers}",
                "Load it on the base that it was trained on.",
            )
        hidden = shape.width(Module.BLOCK)
        found: list[Component] = []
        for layer in self.layers:
            site = Site(layer, Module.BLOCK)
            weight = self._read(f"layers.{layer}.weight", (self.rank, hidden))
            bias = self._read(f"layers.{layer}.bias", (self.rank,))
            rotation = self._read(f"layers.{layer}.rotate_layer", (hidden, self.rank))
            rows = rotation.T.contiguous()
            found.append(LowRank(site, weight - rows if self.method == "loreft" else weight, rows))
            found.append(Offset(site, rotation @ bias))
        return found

    def guess_hidden(self) -> int:
        size = self._file.infos[f"layers.{self.layers[0]}.weight"].shape
        return size[-1] if size else 0

    def malformed(self, why: str) -> Exception:
        return self.config.malformed(why, "Write the adapter again.")

    def _read(self, key: str, size: tuple[int, ...]) -> Tensor:
        info = self._file.infos[key]
        if not info.dtype.is_floating_point:
            raise self.malformed(f"{key} is of {info.dtype}, not floating point")
        if info.shape != size:
            raise self.config.unsupported(
                f"{key} has shape {list(info.shape)}, expected {list(size)}",
                f"Correct rank in {CONFIG_NAME}, or load it on the base that it was trained on.",
            )
        tensor = self._file.read(key).float()
        if not is_finite(tensor):
            raise self.malformed(f"{key} holds NaN or infinity")
        return tensor


def _detect(files: AdapterFiles) -> bool:
    return is_own(files, _NAME)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    reft = _Reft(files)
    return Program(
        _NAME,
        tuple(reft.components(shape)),
        reft.config.base_model,
        tuple(reft.config.base_notes(shape.name)),
        positions=reft.positions,
    )


def _guess_shape(files: AdapterFiles) -> ModelShape:
    reft = _Reft(files)
    hidden = reft.guess_hidden()
    return ModelShape(reft.layers[-1] + 1, {Module.Q: (hidden, 0)})


KIND = Kind(_NAME, _detect, _compile, _guess_shape, (CONFIG_NAME, WEIGHTS_NAME))
