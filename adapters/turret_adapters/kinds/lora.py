"""LoRA as PEFT saves it: `W' = W + s B A` (Hu et al., 2021), with rsLoRA, patterns and biases.

Accepts every setting of PEFT 0.21 that is plain low rank when it is loaded, whatever its training
did (EVA, MiCA, VeLoRA, MonteCLoRA, orthogonal). Refuses by name what needs another base (PiSSA and
its like before conversion, LoftQ, KaSA) or another primitive (DoRA, aLoRA, full copies of modules).
"""

from __future__ import annotations

import math

from turret_adapters.components import Component, LowRank, Offset
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.targets import PatternTable, Targets
from turret_adapters.peft.tensors import PeftTensors, guess_sizes, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_FULL_WEIGHTS = "it stores full weights of modules; low-rank changes and offsets can be served"
_REFUSED = {
    "alora_invocation_tokens": "activated LoRA acts only from its invocation tokens on",
    "arrow_config": "Arrow routes every token among several adapters",
    "enable_lora": "merged projections of the first PEFT versions are not read",
    "kasa_config": "KaSA truncates the base's weights",
    "layer_replication": "it builds a deeper model out of the base's layers",
    "megatron_config": "Megatron splits the projections differently",
    "modules_to_save": _FULL_WEIGHTS,
    "target_parameters": "it adapts bare parameters (experts), which this version does not serve",
    "trainable_token_indices": "it replaces rows of the embedding",
    "use_bdlora": "block-diagonal LoRA stores its factors in blocks",
    "use_dora": "DoRA rescales the adapted weight's rows, which this version does not serve",
    "use_qalora": "QALoRA pools the input before its factor A",
}
# Read below, or without effect on what the loaded adapter computes.
_KNOWN = frozenset(
    {
        "alpha_pattern",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "merge_weights",
        "monteclora_config",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "runtime_config",
        "target_modules",
        "use_rslora",
        "velora_config",
    }
)
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
# State of a training method that evaluation does not read, and the setting that stores it.
_TRAINING_STATE = {
    "lora_monteclora_sampler": "monteclora_config",
    "lora_velora_embed": "velora_config",
}
# These subtract the initial B A from the base before training.
_MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga")


class _Settings:
    """adapter_config.json, read and checked."""

    def __init__(self, files: AdapterFiles):
        config = self.config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        self._check_init()
        self._rank = config.integer("r", 8, 1)
        self._alpha = config.number("lora_alpha", 8)
        self._ranks = PatternTable(config, "rank_pattern")
        self._alphas = PatternTable(config, "alpha_pattern")
        self._rank_stabilised = config.flag("use_rslora")
        self._tied = config.flag("ensure_weight_tying")
        self.bias = config.choice("bias", "none", ("none", "all", "lora_only"))
        self.has_branch_bias = config.flag("lora_bias")
        self.targets = Targets(config)

    def _check_init(self) -> None:
        value = self.config.get("init_lora_weights")
        name = str(value).lower()
        if value is None or isinstance(value, bool) or name in _PLAIN_INITS:
            return
        if name.startswith(_MUTATING_INITS):
            raise self.config.unsupported(
                f"init_lora_weights is {quote(value)}: it was trained on a base whose weights this "
                "initialisation changed, and on the original base it means something else",
                "Convert it with PEFT: model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial_adapter).",
            )
        if name == "loftq":
            raise self.config.unsupported(
                "init_lora_weights is 'loftq': it is valid only on LoftQ's own quantised base",
                "Serve the merged model, or train on the plain base.",
            )
        raise self.config.unsupported(f"init_lora_weights is {quote(value)}, which is not known")

    def matches(self, path: str, site: Site) -> bool | None:
        """Does the config name the module? PEFT lets a tied head follow the embedding."""
        matched = self.targets.matches(path, site)
        if self._tied and site.module is Module.HEAD and matched is False:
            return self.targets.matches("model.embed_tokens", Site(-1, Module.EMBED))
        return matched

    def is_training_state(self, key: str) -> bool:
        """Is the tensor read in training only?"""
        parts = key.split(".")
        return any(p in parts and self.config.get(f) for p, f in _TRAINING_STATE.items())

    def rank(self, path: str) -> int:
        """The rank of the module at `path`."""
        rank = self._ranks.get(path, self._rank)
        return self.config.checked_integer(f"the rank of {path}", rank, 1)

    def scale(self, path: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = self._alphas.get(path, self._alpha)
        alpha = self.config.checked_number(f"lora_alpha of {path}", alpha)
        if alpha == 0:
            raise self.config.malformed(
                f"lora_alpha of {path} is 0: the adapter would do nothing there"
            )
        return alpha / (math.sqrt(rank) if self._rank_stabilised else rank)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._settings = _Settings(files)
        self._tensors = PeftTensors(files, shape, self._settings.config, _role)
        self._shape = shape

    def program(self) -> Program:
        components: list[Component] = []
        for site in self._shape.sites():
            components += self._low_rank(site)
            components += self._biases(site)
            self._tensors.ignore_base_copy(site)
        return self._tensors.program(
            "lora",
            components,
            targets=self._settings.targets,
            is_ignored=self._settings.is_training_state,
        )

    def _low_rank(self, site: Site) -> list[Component]:
        settings, tensors, found = self._settings, self._tensors, self._tensors.at(site)
        matched = settings.matches(found.path, site)
        if "lora_B.bias" in found.keys and "lora_B" not in found.keys:
            raise tensors.malformed(f"{found.path} has no lora_B")
        if not tensors.is_adapted(site, ("lora_A", "lora_B"), settings.targets, matched):
            return []
        rank = settings.rank(found.path)
        scale = settings.scale(found.path, rank)
        fan_in, fan_out = self._shape.dims[site.module]
        a = tensors.read(found.keys["lora_A"], (rank, fan_in), rank_dim=0)
        b = tensors.read_scaled(found.keys["lora_B"], (fan_out, rank), scale, rank_dim=1)
        components: list[Component] = [LowRank(site, a, b.T.contiguous(), published_scale=scale)]
        is_stored = "lora_B.bias" in found.keys
        if is_stored != settings.has_branch_bias and site.module is not Module.EMBED:
            raise tensors.malformed(
                f"lora_bias is {str(settings.has_branch_bias).lower()}, but the bias of "
                f"lora_B at {found.path} is {'stored' if is_stored else 'missing'}"
            )
        if is_stored:
            bias = tensors.read_scaled(found.keys["lora_B.bias"], (fan_out,), scale)
            components.append(Offset(site, bias))
        return components

    def _biases(self, site: Site) -> list[Component]:
        keys = self._tensors.at(site).keys
        key = keys.get("bias")
        wanted = self._settings.bias == "all" or (
            self._settings.bias == "lora_only" and "lora_A" in keys
        )
        if key is None or not wanted:
            return []  # a bias that is not wanted stays unused and is refused as such
        if site.module not in self._shape.has_bias:
            raise self._tensors.wrong_base(
                f"{quote(key)} replaces a bias that this base does not have"
            )
        fan_out = self._shape.dims[site.module][1]
        return [Offset(site, self._tensors.read(key, (fan_out,)).float(), absolute=True)]


def _role(name: TensorName) -> str | None:
    """What a tensor is to its module; the adapter's name, where one is stored, is dropped."""
    first, *rest = name.role
    is_embedding = name.site.module is Module.EMBED
    if first in ("lora_embedding_A", "lora_embedding_B") and is_embedding:
        return f"lora_{first[-1]}" if len(rest) <= 1 else None
    if first in ("lora_A", "lora_B") and not is_embedding:
        if rest[-1:] == ["weight"] and len(rest) <= 2:
            return first
        is_bias = first == "lora_B" and rest[-1:] == ["bias"] and len(rest) <= 2
        return "lora_B.bias" if is_bias else None
    if first == "base_layer" and len(rest) == 1:
        first, rest = rest[0], []
    return first if first in ("weight", "bias") and not rest else None


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    fan_in = (shapes.get("lora_A") or (0,))[-1]
    return fan_in, (shapes.get("lora_B") or shapes.get("bias") or (0,))[0]


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "LORA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _role, _sizes)


KIND = Kind("lora", _detect, _compile, _guess_shape)
