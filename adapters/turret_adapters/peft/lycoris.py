"""What PEFT's LoHa and LoKr have in common: rank and alpha of a module, patterns, targets."""

from __future__ import annotations

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.low_rank import FULL_WEIGHTS
from turret_adapters.peft.targets import PatternTable, Targets

# Read below, or without effect on what the loaded adapter computes: dropouts act in training, the
# "effective" decomposition in convolutions.
_KNOWN = frozenset(
    {
        "alpha",
        "alpha_pattern",
        "exclude_modules",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "module_dropout",
        "r",
        "rank_dropout",
        "rank_pattern",
        "target_modules",
        "use_effective_conv2d",
    }
)


class LycorisSettings:
    """adapter_config.json of such an adapter, read and checked.

    Args:
        files: the adapter's folder.
        known: further fields that the kind reads, or that may have any value.

    Attributes:
        config: the fields.
        targets: which modules it names.
    """

    def __init__(self, files: AdapterFiles, known: frozenset[str] = frozenset()):
        config = self.config = PeftConfig(files)
        config.check_fields(_KNOWN | known, {"modules_to_save": FULL_WEIGHTS})
        self.targets = Targets(config)
        self._rank = config.integer("r", 8, 1)
        self._alpha = config.number("alpha", 8)
        self._ranks = PatternTable(config, "rank_pattern")
        self._alphas = PatternTable(config, "alpha_pattern")

    def rank(self, path: str) -> int:
        """The rank of the module at `path`."""
        rank = self._ranks.get(path, self._rank)
        return self.config.checked_integer(f"the rank of {path}", rank, 1)

    def scale(self, path: str) -> float:
        """alpha / r."""
        alpha = self.config.checked_number(f"alpha of {path}", self._alphas.get(path, self._alpha))
        if alpha == 0:
            raise self.config.malformed(f"alpha of {path} is 0: the adapter would do nothing there")
        return alpha / self.rank(path)
