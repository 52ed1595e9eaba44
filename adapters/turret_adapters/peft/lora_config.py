"""adapter_config.json of a LoRA: every setting of PEFT 0.21, read or refused by name."""

from __future__ import annotations

import math
from enum import StrEnum

from turret_adapters.errors import listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.targets import PatternTable, Targets
from turret_adapters.spec import Module, Positions, Site

REFUSED = {
    "arrow_config": "Arrow routes every token among several adapters",
    "enable_lora": "merged projections of the first PEFT versions are not read",
    "layer_replication": "it builds a deeper model out of the base's layers",
    "megatron_config": "Megatron splits the projections differently",
    "target_parameters": "it adapts bare parameters (experts), which this version does not serve",
}
# Read below, or without effect on what the loaded adapter computes.
KNOWN = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "kasa_config",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "merge_weights",
        "modules_to_save",
        "monteclora_config",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "runtime_config",
        "target_modules",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "use_rslora",
        "velora_config",
    }
)
_MAX_INVOCATION = 256  # a generation prompt has some ten tokens
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
# These subtract from the base what the base and the training data, or chance, determine.
_MUTATING_INITS = ("pissa", "corda", "lora_ga")
# State of a training method that evaluation does not read, and the setting that stores it.
_TRAINING_STATE = {
    "lora_monteclora_sampler": "monteclora_config",
    "lora_velora_embed": "velora_config",
}


class Taken(StrEnum):
    """What training took away from the base's weight before it began."""

    NOTHING = "nothing"
    LARGEST = "its largest singular components"  # PiSSA
    LEADING = "its projection on its first columns"  # OLoRA
    SMALLEST = "its smallest singular components"  # KaSA


class LoraSettings:
    """The settings of one adapter.

    Attributes:
        config: the raw fields.
        targets: which modules are adapted.
        bias: "none", "all" or "lora_only": which biases of the base are replaced.
        has_branch_bias: the factor B has a bias.
        taken: see `Taken`.
        has_diagonal: a diagonal stands between the factors (KaSA).
        has_magnitudes: the rows of the adapted weight have magnitudes of their own (DoRA).
        pool: inputs that share a column of A, 1 for each its own (QALoRA).
        positions: where in a request it acts, None for everywhere (aLoRA).
        modules_to_save: names of modules whose weights are stored in full.

    Raises:
        AdapterError: a setting that is wrong or cannot be served.
    """

    def __init__(self, files: AdapterFiles):
        config = self.config = PeftConfig(files)
        config.check_fields(KNOWN, REFUSED)
        self._rank = config.integer("r", 8, 1)
        self._alpha = config.number("lora_alpha", 8)
        self._ranks = PatternTable(config, "rank_pattern")
        self._alphas = PatternTable(config, "alpha_pattern")
        self._rank_stabilised = config.flag("use_rslora")
        self._tied = config.flag("ensure_weight_tying")
        self.bias = config.choice("bias", "none", ("none", "all", "lora_only"))
        self.has_branch_bias = config.flag("lora_bias")
        self.targets = Targets(config)
        self.modules_to_save = config.strings("modules_to_save") or []
        if isinstance(self.modules_to_save, str):
            raise config.malformed("modules_to_save is no list")
        self._read_variants()
        self.taken = self._read_init()
        self.positions = self._read_positions()

    def _read_variants(self) -> None:
        config = self.config
        self.has_magnitudes = config.flag("use_dora")
        self.has_diagonal = bool(self._section("kasa_config", {"beta", "gamma"}))
        blocks = self._section(
            "use_bdlora", {"match_strict", "nblocks", "target_modules_bd_a", "target_modules_bd_b"}
        )
        self._blocks = config.checked_integer("nblocks", blocks.get("nblocks", 1), 1)
        self._block_names = [
            self._names(f"target_modules_bd_{factor}", blocks.get(f"target_modules_bd_{factor}"))
            for factor in "ab"
        ]
        pools = config.flag("use_qalora")
        self.pool = config.integer("qalora_group_size", 16, 1) if pools else 1
        if pools and self.pool == 1:
            raise config.unsupported(
                "use_qalora is set with groups of one input: on a GPTQ base that multiplies the "
                "input by its width, on a plain base it does nothing, and the files look the same"
            )
        variants = ("use_dora", "kasa_config", "use_bdlora", "alora_invocation_tokens")
        used = [name for name in variants if config.get(name)]
        used += ["use_qalora"] if pools else []
        if len(used) > 1:
            raise config.unsupported(f"it sets {listing(used)} together, which PEFT does not")

    def _section(self, field: str, known: set[str]) -> dict[str, object]:
        section = self.config.mapping(field)
        unknown = sorted(name for name in section.keys() - known if section[name])
        if unknown:
            raise self.config.unsupported(f"{field} sets {listing(unknown)}, which is not known")
        return section

    def _names(self, field: str, value: object) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise self.config.malformed(f"{field} is {quote(value)}, not a list of strings")
        return value

    def _read_init(self) -> Taken:
        value = self.config.get("init_lora_weights")
        name = str(value).lower()
        if value is None or isinstance(value, bool) or name in _PLAIN_INITS:
            return Taken.SMALLEST if self.has_diagonal else Taken.NOTHING
        if value == "pissa" or name == "olora":
            if self.has_diagonal:
                raise self.config.unsupported(f"init_lora_weights is {quote(value)} beside KaSA")
            return Taken.LARGEST if value == "pissa" else Taken.LEADING
        if name.startswith(_MUTATING_INITS):
            raise self.config.unsupported(
                f"init_lora_weights is {quote(value)}: it was trained on a base whose weights this "
                "initialisation changed, by what the file does not tell",
                "Convert it with PEFT: model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial_adapter).",
            )
        if name == "loftq":
            raise self.config.unsupported(
                "init_lora_weights is 'loftq': it is valid only on LoftQ's own quantised base",
                "Serve the merged model, or train on the plain base.",
            )
        raise self.config.unsupported(f"init_lora_weights is {quote(value)}, which is not known")

    def _read_positions(self) -> Positions | None:
        value = self.config.get("alora_invocation_tokens")
        if value is None:
            return None
        if not isinstance(value, list) or not value:
            raise self.config.malformed(
                f"alora_invocation_tokens is {quote(value)}, not a list of token ids: the adapter "
                "would never act"
            )
        if len(value) > _MAX_INVOCATION:
            raise self.config.unsupported(
                f"alora_invocation_tokens has {len(value)} tokens, more than {_MAX_INVOCATION}: "
                "it is looked for at every place of a prompt"
            )
        tokens = [self.config.checked_integer("alora_invocation_tokens", x, 0) for x in value]
        # A position decides over the whole adapter; these would act everywhere.
        everywhere = ("modules_to_save", "trainable_token_indices")
        also = [name for name in everywhere if self.config.get(name)]
        if self.bias != "none":
            also.append("bias")
        if also:
            raise self.config.unsupported(
                f"alora_invocation_tokens is set, and {listing(also)}, which acts before them too"
            )
        return Positions(invocation=tuple(tokens))

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

    def blocks(self, path: str) -> tuple[int, int]:
        """Diagonal blocks of A and of B at `path`; PEFT looks for the names anywhere in it."""
        in_a, in_b = (any(name in path for name in names) for names in self._block_names)
        if in_a and in_b:
            raise self.config.malformed(f"use_bdlora names {path} for both of its factors")
        return (self._blocks if in_a else 1), (self._blocks if in_b else 1)
