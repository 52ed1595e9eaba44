"""TEAL: small inputs of every linear are left out (Liu et al., 2024, arXiv 2408.14690).

`y = W s(x) + b`, `s(x)_i = x_i` where `|x_i| > t`, else 0: one threshold per layer and linear.

Read from turret_adapter.json {"kind": "teal", "version": 1, "thresholds": {"q_proj": [one number
per layer], ...}} (`turret fit teal`). What the authors publish, histograms, is a pickle: refused.
"""

from __future__ import annotations

from turret_adapters import own_format
from turret_adapters.components import Component, Threshold
from turret_adapters.errors import AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.own_format import OwnConfig, is_own
from turret_adapters.spec import LINEARS, Kind, ModelShape, Program, Site
from turret_adapters.thresholds import checked_thresholds

_NAME = "teal"
_FIELD = "thresholds"
_PUBLISHED = ("histograms/layer-0/mlp/histograms.pt", "lookup/layer-0/results.csv")


class _Thresholds:
    """The table, by linear; each list is still unchecked."""

    def __init__(self, files: AdapterFiles):
        self.config = OwnConfig(files)
        self.config.check_fields(frozenset({_FIELD}))
        if files.has(own_format.WEIGHTS_NAME):
            raise self.config.unsupported(f"{own_format.WEIGHTS_NAME}: TEAL has no tensors")
        table = self.config.get(_FIELD)
        if not isinstance(table, dict) or not table:
            raise self.config.malformed(f"{_FIELD} is {quote(table)}, not an object of lists")
        if strangers := [name for name in table if name not in LINEARS]:
            raise self.config.unsupported(
                f"{_FIELD} names {listing(strangers)}, and TEAL thresholds the inputs of "
                f"{', '.join(LINEARS)}"
            )
        self.by_module = {module: table[module] for module in LINEARS if module in table}

    def components(self, shape: ModelShape) -> tuple[Component, ...]:
        """Of every linear with a threshold above 0."""
        return tuple(
            Threshold(Site(layer, module), value)
            for module, values in self.by_module.items()
            for layer, value in enumerate(
                checked_thresholds(
                    values, f"{_FIELD}.{module}", shape.num_layers, self.config.malformed
                )
            )
            if value > 0
        )


def _is_published(files: AdapterFiles) -> bool:
    return any(map(files.has, _PUBLISHED))


def _detect(files: AdapterFiles) -> bool:
    return is_own(files, _NAME) or _is_published(files)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    _refuse_published(files)
    source = _Thresholds(files)
    components = source.components(shape)
    if not components:
        raise source.config.malformed("no threshold is above 0: it would do nothing")
    notes = tuple(source.config.base_notes(shape.name))
    return Program(_NAME, components, source.config.base_model, notes)


def _refuse_published(files: AdapterFiles) -> None:
    if not is_own(files, _NAME):
        raise AdapterUnsupported(
            f"adapter {quote(str(files.path))} was not loaded",
            "TEAL's histograms.pt are pickles, which can run code and are never read; the tables "
            "beside them hold shares of zeros, which mean no threshold without the histograms",
            "Fit the thresholds: turret fit teal MODEL --text FILE --sparsity 0.5 --output DIR.",
        )


def _guess_shape(files: AdapterFiles) -> ModelShape:
    _refuse_published(files)
    lists = [x for x in _Thresholds(files).by_module.values() if isinstance(x, list)]
    return ModelShape(max(map(len, lists), default=0), dict.fromkeys(LINEARS, (1, 1)))


def _list_files(files: AdapterFiles) -> tuple[str, ...]:
    return _FILES if is_own(files, _NAME) else ()


_FILES = (own_format.CONFIG_NAME,)
KIND = Kind(_NAME, _detect, _compile, _guess_shape, _FILES, list_files=_list_files)
