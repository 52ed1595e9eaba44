"""LoRA as PEFT saves it: `W' = W + s B A` (Hu et al., 2021), with rsLoRA, patterns and biases.

Accepts every setting of PEFT 0.21 that is plain low rank when it is loaded, whatever its training
did (EVA, MiCA, VeLoRA, MonteCLoRA, orthogonal). Refuses by name what needs another base (PiSSA and
its like before conversion, LoftQ, KaSA) or another primitive (DoRA, aLoRA, full copies of modules).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.names import TensorName, module_path, parse_name
from turret_adapters.peft.targets import PatternTable, Targets
from turret_adapters.spec import Component, Kind, LowRank, ModelShape, Module, Offset, Program, Site
from turret_adapters.tensor_file import TensorFile, is_finite

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


@dataclass(slots=True)
class _SiteTensors:
    """The tensors of one module: its path in the trained model, and the key of each role."""

    path: str
    keys: dict[str, str] = field(default_factory=dict)


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
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        self._settings = _Settings(files)
        self._tensors: TensorFile = files.tensors(WEIGHTS_NAME)
        self._shape = shape
        self._used: set[str] = set()
        self._notes: list[str] = []

    def program(self) -> Program:
        sites, strangers = _collect(self._tensors)
        prefix = _layer_prefix(sites)
        self._check_sites_exist(sites)
        components: list[Component] = []
        for site in self._shape.sites():
            tensors = sites.get(site) or _SiteTensors(module_path(site, prefix))
            components += self._low_rank(site, tensors)
            components += self._biases(site, tensors)
            self._check_copy(site, tensors)
        self._check_all_used(strangers, len(components))
        self._note_base()
        return Program(
            "lora", tuple(components), self._settings.config.base_model, tuple(self._notes)
        )

    def _check_sites_exist(self, sites: dict[Site, _SiteTensors]) -> None:
        known = set(self._shape.sites())
        foreign = [str(site) for site in sorted(sites) if site not in known]
        if foreign:
            raise self._wrong_base(
                f"it adapts {listing(foreign)}, and this base has {self._shape.num_layers} layers "
                f"with {', '.join(self._shape.dims)}"
            )

    def _low_rank(self, site: Site, tensors: _SiteTensors) -> list[Component]:
        keys, path = tensors.keys, tensors.path
        present = [role for role in ("A", "B", "B.bias") if role in keys]
        matched = self._settings.matches(path, site)
        if not present:
            if matched:
                raise self._malformed(
                    f"{self._settings.targets} includes {path}, but its tensors are missing"
                )
            return []
        if matched is False:
            raise self._malformed(
                f"{quote(keys[present[0]])} is stored, but {self._settings.targets} "
                f"does not include {path}"
            )
        for role in ("A", "B"):
            if role not in keys:
                raise self._malformed(f"{path} has no lora_{role}")
        rank = self._settings.rank(path)
        scale = self._settings.scale(path, rank)
        fan_in, fan_out = self._shape.dims[site.module]
        a = self._read(keys["A"], (rank, fan_in), rank_dim=0)
        b = self._read_scaled(keys["B"], (fan_out, rank), scale, rank_dim=1)
        components: list[Component] = [LowRank(site, a, b.T.contiguous())]
        if ("B.bias" in keys) != self._settings.has_branch_bias and site.module is not Module.EMBED:
            stored = "is stored" if "B.bias" in keys else "is missing"
            raise self._malformed(
                f"lora_bias is {str(self._settings.has_branch_bias).lower()}, but the bias of "
                f"lora_B at {path} {stored}"
            )
        if "B.bias" in keys:
            bias = self._read_scaled(keys["B.bias"], (fan_out,), scale)
            components.append(Offset(site, bias))
        return components

    def _biases(self, site: Site, tensors: _SiteTensors) -> list[Component]:
        key = tensors.keys.get("bias")
        wanted = self._settings.bias == "all" or (
            self._settings.bias == "lora_only" and "A" in tensors.keys
        )
        if key is None or not wanted:
            return []  # a bias that is not wanted stays unused and is refused as such
        if site.module not in self._shape.has_bias:
            raise self._wrong_base(f"{quote(key)} replaces a bias that this base does not have")
        fan_out = self._shape.dims[site.module][1]
        return [Offset(site, self._read(key, (fan_out,)).float(), absolute=True)]

    def _check_copy(self, site: Site, tensors: _SiteTensors) -> None:
        """PEFT repeats the base's embedding and head in the file whenever they are adapted."""
        key = tensors.keys.get("weight")
        if key is None or site.module not in (Module.EMBED, Module.HEAD):
            return
        fan_in, fan_out = self._shape.dims[site.module]
        size = (fan_in, fan_out) if site.module is Module.EMBED else (fan_out, fan_in)
        if self._shape.weight is None:
            self._check_tensor(key, size)
            self._used.add(key)
            self._notes.append(f"{key} repeats the base's {site}; it was not compared")
            return
        copy, base = self._read(key, size), self._shape.weight(site)
        if not (torch.equal(copy.to(base.dtype), base) or torch.equal(base.to(copy.dtype), copy)):
            raise self._unsupported(
                f"{quote(key)} differs from the base's {site}: {_FULL_WEIGHTS}",
                "Train it as LoRA on the unchanged embedding, or serve the merged model.",
            )

    def _check_all_used(self, strangers: list[str], num_components: int) -> None:
        left = strangers + [key for key in self._tensors.infos if key not in self._used]
        left = [key for key in dict.fromkeys(left) if not self._settings.is_training_state(key)]
        if not num_components:
            held = f"holds {listing(left)}" if left else "holds no tensor"
            raise self._wrong_base(
                f"no module is matched: {self._settings.targets}, the file {held}, and this base "
                f"has {', '.join(self._shape.dims)}"
            )
        if left:
            raise self._unsupported(
                f"nothing in it explains {listing(left)}: served without them it would be "
                "another adapter",
                f"Correct {CONFIG_NAME}, or export the adapter again with PEFT.",
            )

    def _note_base(self) -> None:
        trained, served = self._settings.config.base_model, self._shape.name
        if trained and served and _last_part(trained) != _last_part(served):
            self._notes.append(f"trained on {quote(trained)}, served on {quote(served)}")
        if self._settings.targets.names is None:
            self._notes.append("target_modules is null: the stored tensors say what is adapted")

    def _read(self, key: str, size: tuple[int, ...], rank_dim: int | None = None) -> Tensor:
        """A tensor of this size whose values are finite."""
        self._check_tensor(key, size, rank_dim)
        self._used.add(key)
        tensor = self._tensors.read(key)
        self._check_finite(key, tensor)
        return tensor

    def _read_scaled(
        self, key: str, size: tuple[int, ...], scale: float, rank_dim: int | None = None
    ) -> Tensor:
        """The same times the scale, in float32."""
        self._check_tensor(key, size, rank_dim)
        self._used.add(key)
        tensor = self._tensors.read(key)
        scaled = tensor.float() * scale
        if not is_finite(scaled):
            self._check_finite(key, tensor)
            raise self._malformed(f"{quote(key)} times the scale {scale:g} overflows float32")
        return scaled

    def _check_finite(self, key: str, tensor: Tensor) -> None:
        if not is_finite(tensor):
            raise self._malformed(
                f"{quote(key)} holds NaN or infinity", "Its training diverged, or it is damaged."
            )

    def _check_tensor(self, key: str, size: tuple[int, ...], rank_dim: int | None = None) -> None:
        info = self._tensors.infos[key]
        if not info.dtype.is_floating_point:
            raise self._malformed(f"{quote(key)} is of {info.dtype}, not floating point")
        if info.shape == size:
            return
        why = f"{quote(key)} has shape {list(info.shape)}, expected {list(size)}"
        wrong_rank = rank_dim is not None and (
            len(info.shape) != 2 or info.shape[rank_dim] != size[rank_dim]
        )
        if wrong_rank:
            raise self._malformed(f"{why}: it contradicts the rank in {CONFIG_NAME}")
        raise self._wrong_base(why)

    def _wrong_base(self, why: str) -> AdapterUnsupported:
        trained = self._settings.config.base_model
        served = quote(self._shape.name) if self._shape.name else "this base"
        return self._unsupported(
            why,
            f"Load an adapter that was trained on {served}"
            + (f" (this one names {quote(trained)})." if trained else "."),
        )

    def _unsupported(self, why: str, fix: str) -> AdapterUnsupported:
        return AdapterUnsupported(self._what, why, fix)

    def _malformed(self, why: str, fix: str = "") -> AdapterMalformed:
        return AdapterMalformed(self._what, why, fix or "Export the adapter again with PEFT.")


def _collect(tensors: TensorFile) -> tuple[dict[Site, _SiteTensors], list[str]]:
    """The tensors by site and role, and the names that belong to no site."""
    sites: dict[Site, _SiteTensors] = {}
    strangers: list[str] = []
    for key in tensors.infos:
        name = parse_name(key)
        role = name and _role(name)
        if name is None or role is None:
            strangers.append(key)
            continue
        found = sites.setdefault(name.site, _SiteTensors(name.path))
        if role in found.keys:
            raise AdapterMalformed(
                f"{tensors.name!r} was refused",
                f"{quote(found.keys[role])} and {quote(key)} are the same tensor of {name.path}",
                "Store one adapter per folder.",
            )
        found.keys[role] = key
    return sites, strangers


def _role(name: TensorName) -> str | None:
    """What a tensor is to its module; the adapter's name, where one is stored, is dropped."""
    first, *rest = name.role
    if first in ("lora_embedding_A", "lora_embedding_B") and name.site.module is Module.EMBED:
        return first[-1] if len(rest) <= 1 else None
    if first in ("lora_A", "lora_B") and name.site.module is not Module.EMBED:
        if rest[-1:] == ["weight"] and len(rest) <= 2:
            return first[-1]
        return "B.bias" if first == "lora_B" and rest[-1:] == ["bias"] and len(rest) <= 2 else None
    if first == "base_layer" and len(rest) == 1:
        first, rest = rest[0], []
    return first if first in ("weight", "bias") and not rest else None


def _layer_prefix(sites: dict[Site, _SiteTensors]) -> str:
    """What precedes "layers" in most of the stored names."""
    prefixes = Counter(x.path.split("layers.")[0] for site, x in sites.items() if site.layer >= 0)
    return prefixes.most_common(1)[0][0] if prefixes else "model."


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()


def _detect(files: AdapterFiles) -> bool:
    return files.has(CONFIG_NAME) and files.json(CONFIG_NAME).get("peft_type") == "LORA"


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    tensors = files.tensors(WEIGHTS_NAME)
    dims: dict[Module, tuple[int, int]] = {}
    has_bias: set[Module] = set()
    num_layers = 0
    for site, found in _collect(tensors)[0].items():
        shapes = {role: tensors.infos[key].shape for role, key in found.keys.items()}
        num_layers = max(num_layers, site.layer + 1)
        fan_in = (shapes.get("A") or (0,))[-1]
        fan_out = (shapes.get("B") or shapes.get("bias") or (0,))[0]
        if fan_in or site.module not in dims:  # a bias alone tells nothing of the input
            dims[site.module] = fan_in, fan_out
        if "bias" in shapes:
            has_bias.add(site.module)
    return ModelShape(num_layers, dims, frozenset(has_bias))


KIND = Kind("lora", _detect, _compile, _guess_shape)
