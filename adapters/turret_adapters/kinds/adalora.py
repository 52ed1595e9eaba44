"""AdaLoRA as PEFT saves it: `W' = W + s B diag(E) A` (Zhang et al., 2023), pruned per module.

The scale is `lora_alpha / (init_r + 1e-5)` at every module, whatever rank was left to it: PEFT
keeps the initial rank as the divisor. The rank that was left is the number of true entries in the
module's rank_pattern; a module without one has the initial rank.
"""

from __future__ import annotations

from turret_adapters.components import LowRank
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import FULL_WEIGHTS, compile_branches
from turret_adapters.peft.names import parse_name
from turret_adapters.peft.roles import SiteTensors, guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_ROLES = ("lora_A", "lora_E", "lora_B")
_ROLE_OF = simple_role({role: role for role in _ROLES})
_LORA_ONLY = "it is a setting of LoRA that AdaLoRA does not have"
_REFUSED = {
    "alora_invocation_tokens": _LORA_ONLY,
    "arrow_config": _LORA_ONLY,
    "ensure_weight_tying": _LORA_ONLY,
    "kasa_config": _LORA_ONLY,
    "layer_replication": "it builds a deeper model out of the base's layers",
    "loftq_config": _LORA_ONLY,
    "lora_bias": _LORA_ONLY,
    "megatron_config": "Megatron splits the projections differently",
    "modules_to_save": FULL_WEIGHTS,
    "target_parameters": _LORA_ONLY,
    "trainable_token_indices": "it replaces rows of the embedding",
    "use_bdlora": _LORA_ONLY,
    "use_dora": _LORA_ONLY,
    "use_qalora": _LORA_ONLY,
}
# Read below, or without effect: the schedule of the training, and settings that AdaLoRA inherits
# from LoRA and never reads (its scale and its initialisation are its own).
_KNOWN = frozenset(
    {
        "alpha_pattern",
        "beta1",
        "beta2",
        "bias",
        "corda_config",
        "deltaT",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "init_r",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "monteclora_config",
        "orth_reg_weight",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "runtime_config",
        "target_modules",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
        "use_rslora",
        "velora_config",
    }
)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = self._config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        self._initial_rank = config.integer("init_r", 12, 1)
        self._alpha = config.number("lora_alpha", 8)
        if self._alpha <= 0:
            raise config.malformed(
                f"lora_alpha is {self._alpha:g}: PEFT then scales by a rank that pruning changes",
                "Set it to the scale times init_r, for example to init_r.",
            )
        self._bias = config.choice("bias", "none", ("none", "all", "lora_only"))
        self._targets = Targets(config)
        self._ranks = self._read_rank_pattern()
        self._tensors = PeftTensors(files, shape, config, _ROLE_OF)
        self._shape = shape

    def program(self) -> Program:
        program = compile_branches(
            "adalora",
            self._tensors,
            self._targets,
            lambda *_: _ROLES,
            self._branch,
            bias=self._bias,
        )
        if self._ranks:
            raise self._config.malformed(
                f"rank_pattern names {next(iter(self._ranks))}, which is not adapted"
            )
        return program

    def _read_rank_pattern(self) -> dict[Site, int]:
        ranks: dict[Site, int] = {}
        for key, kept in self._config.mapping("rank_pattern").items():
            name = parse_name(key)
            if name is None or name.role[0] != "lora_E" or name.site in ranks:
                raise self._config.malformed(f"rank_pattern names {quote(key)}")
            is_mask = isinstance(kept, list) and all(type(entry) is bool for entry in kept)
            if not is_mask or len(kept) != self._initial_rank:
                raise self._config.malformed(
                    f"rank_pattern of {quote(key)} is no list of init_r = {self._initial_rank} "
                    "booleans"
                )
            ranks[name.site] = sum(kept)
        return ranks

    def _branch(self, site: Site, found: SiteTensors) -> LowRank | None:
        rank = self._ranks.pop(site, self._initial_rank)
        fan_in, fan_out = self._shape.dims[site.module]
        keys, tensors = found.keys, self._tensors
        scale = self._alpha / (self._initial_rank + 1e-5)
        a = tensors.read(keys["lora_A"], (rank, fan_in), rank_dim=0)
        e = tensors.read_scaled(keys["lora_E"], (rank, 1), scale, rank_dim=0)
        b = tensors.read(keys["lora_B"], (fan_out, rank), rank_dim=1).float()
        return (
            LowRank(site, a, b.T.contiguous() * e) if rank else None
        )  # it may have been pruned away


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    fan_in = (shapes.get("lora_A") or (0,))[-1]
    return fan_in, (shapes.get("lora_B") or shapes.get("bias") or (0,))[0]


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "ADALORA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE_OF, _sizes)


KIND = Kind("adalora", _detect, _compile, _guess_shape)
