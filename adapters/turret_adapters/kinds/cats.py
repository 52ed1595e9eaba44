"""CATS: neurons of the MLP that hardly fire are left out (Lee et al., 2024, arXiv 2404.08763).

`y = W_down (a * (W_up x))`, `a = act(W_gate x)` where `|a| > t`, else 0: one threshold per layer.
The activation is the base's, SiLU or GELU.

Two formats are read. The authors' code saves a whole model whose config.json has `thresholds`, one
number per layer; weights beside it must be those of the served base. The compact one (`turret fit
cats`) is turret_adapter.json {"kind": "cats", "version": 1, "thresholds": [...]}.
"""

from __future__ import annotations

from typing import Any

from turret_adapters import model_folder, own_format
from turret_adapters.components import Threshold
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.model_folder import ModelFolder, is_model_folder, model_files
from turret_adapters.own_format import OwnConfig, is_own
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site
from turret_adapters.thresholds import checked_thresholds

_NAME = "cats"
_FIELD = "thresholds"
# Fields of the authors' config that change what is computed, when they are on.
_REFUSED = {
    "use_relu": "it replaces SiLU by ReLU",
    "use_resilu": "it replaces SiLU by a mixture of ReLU and SiLU",
    "use_sparse_predictor": "it predicts the live neurons with a router of its own",
    "cut_pre_mlp": "it also thresholds the input of the MLP",
    "cut_pre_attn": "it also thresholds the input of the attention",
}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class _Compact:
    """turret_adapter.json."""

    def __init__(self, files: AdapterFiles):
        self._config = OwnConfig(files)
        self._config.check_fields(frozenset({_FIELD}))
        if files.has(own_format.WEIGHTS_NAME):
            raise self._config.unsupported(f"{own_format.WEIGHTS_NAME}: CATS has no tensors")
        self.base_model = self._config.base_model
        self.thresholds = self._config.get(_FIELD)

    def check_weights(self, shape: ModelShape) -> None:
        """There are none."""

    def notes(self, shape: ModelShape) -> list[str]:
        return self._config.base_notes(shape.name)

    def malformed(self, why: str) -> AdapterError:
        return self._config.malformed(why)


class _Checkpoint:
    """config.json of the authors' models."""

    def __init__(self, files: AdapterFiles):
        self._files = files
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        config = files.json(model_folder.CONFIG_NAME)
        for name, why in _REFUSED.items():
            if config.get(name):
                raise self._unsupported(f"{name} is set: {why}", "Fit CATS thresholds alone.")
        if config.get("use_sparse_model") is False:
            raise self._unsupported(
                "use_sparse_model is false: the model's own code would not apply its thresholds",
                "Set it to true, or serve the model as it is.",
            )
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise self._unsupported(
                f"hidden_act is {quote(config['hidden_act'])}; the authors' models have SiLU",
                "Fit the thresholds on a model with SiLU, or with `turret fit cats`.",
            )
        for name in _PICKLES:
            if files.has(name):
                raise self._unsupported(
                    f"its weights are a pickle ({name!r}), which is never read, so it is not known "
                    "whether they are the base's",
                    "Save them as safetensors, or keep config.json alone if they are the base's.",
                )
        base = config.get("_name_or_path")
        self.base_model = base[:500] if isinstance(base, str) and base else None
        self.thresholds: Any = config[_FIELD]

    def check_weights(self, shape: ModelShape) -> None:
        """Thresholds say nothing about other weights, and models are often tuned after them."""
        if shape.activation != "silu":
            raise self._unsupported(
                f"it thresholds SiLU, and this base's gate is {shape.activation}",
                "Load it on the base that it was fitted on.",
            )
        if is_model_folder(self._files):
            ModelFolder(self._files, shape).check_base(frozenset())

    def notes(self, shape: ModelShape) -> list[str]:
        if is_model_folder(self._files) and shape.weight is None:
            return ["its copy of the base's weights was not compared"]
        return []

    def malformed(self, why: str) -> AdapterError:
        return AdapterMalformed(self._what, why, "Correct config.json.")

    def _unsupported(self, why: str, fix: str) -> AdapterError:
        return AdapterUnsupported(self._what, why, fix)


def _open(files: AdapterFiles) -> _Compact | _Checkpoint:
    return _Compact(files) if is_own(files, _NAME) else _Checkpoint(files)


def _detect(files: AdapterFiles) -> bool:
    if is_own(files, _NAME):
        return True
    if files.has(own_format.CONFIG_NAME) or files.has("adapter_config.json"):
        return False
    return files.has(model_folder.CONFIG_NAME) and isinstance(
        files.json(model_folder.CONFIG_NAME).get(_FIELD), list
    )


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    source = _open(files)
    values = checked_thresholds(source.thresholds, _FIELD, shape.num_layers, source.malformed)
    components = tuple(
        Threshold(Site(layer, Module.ACT), value) for layer, value in enumerate(values) if value > 0
    )
    if not components:
        raise source.malformed("no threshold is above 0: it would do nothing")
    source.check_weights(shape)
    return Program(_NAME, components, source.base_model, tuple(source.notes(shape)))


def _guess_shape(files: AdapterFiles) -> ModelShape:
    if not is_own(files, _NAME) and is_model_folder(files):
        return model_folder.guess_shape(files)
    source = _open(files)
    count = len(source.thresholds) if isinstance(source.thresholds, list) else 0
    return ModelShape(count, {Module.DOWN: (1, 1)})


def _list_files(files: AdapterFiles) -> tuple[str, ...]:
    if is_own(files, _NAME):
        return _FILES
    return model_files(files) if is_model_folder(files) else (model_folder.CONFIG_NAME,)


_FILES = (own_format.CONFIG_NAME,)
KIND = Kind(
    _NAME,
    _detect,
    _compile,
    _guess_shape,
    _FILES,
    list_files=_list_files,
    repeats_base=lambda key: True,
)
