"""What PEFT's prompt-learning methods share: the base in their config, and one tensor of rows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.tensors import PeftTensors
from turret_adapters.spec import ModelShape

EMBEDDINGS = "prompt_embeddings"

_KNOWN = frozenset(
    {
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "token_dim",
    }
)
# Published ones have a few hundred at most; a million was read, and took gigabytes, in vain.
_MAX_TOKENS = 8192
_REFUSED = {"modules_to_save": "it stores full weights of modules"}


class VirtualTokens:
    """One prompt-learning adapter against one base.

    Args:
        files: the adapter's folder.
        shape: the base.
        known: further fields that the kind reads, or that may have any value.
        refused: why, for further fields that must be off.

    Attributes:
        config: its adapter_config.json.
        tensors: its tensors; none belongs to a site.
        count: virtual tokens.

    Raises:
        AdapterError: settings that are not known, or another base's.
    """

    def __init__(
        self,
        files: AdapterFiles,
        shape: ModelShape,
        known: frozenset[str],
        refused: Mapping[str, str] | None = None,
    ):
        config = self.config = PeftConfig(files)
        config.check_fields(_KNOWN | known, _REFUSED | dict(refused or {}))
        self.tensors = PeftTensors(files, shape, config, lambda name: None)
        self.count = config.checked_integer(
            "num_virtual_tokens", config.get("num_virtual_tokens"), 1
        )
        if self.count > _MAX_TOKENS:
            raise config.unsupported(
                f"num_virtual_tokens is {quote(self.count)}, more than {_MAX_TOKENS}: they take "
                "room in the context of every request",
                "Train fewer.",
            )
        if config.get("num_transformer_submodules") not in (None, 1):
            raise config.unsupported(
                "num_transformer_submodules is not 1: it was trained on an encoder-decoder",
                "Serve it on a model of that kind.",
            )
        self.expect("num_layers", shape.num_layers)

    def expect(self, field: str, value: int) -> None:
        """Check a size that the config repeats; PEFT fills it in from the base it trains on."""
        given = self.config.get(field)
        if given is not None and self.config.checked_integer(field, given, 1) != value:
            raise self.tensors.wrong_base(f"its {field} is {given}, and this base's is {value}")

    def rows(self, width: int) -> Tensor:
        """The stored rows [virtual tokens, width], as stored."""
        return self.read(EMBEDDINGS, (self.count, width))

    def read(self, key: str, size: tuple[int, ...]) -> Tensor:
        """A tensor of this size, checked."""
        if not self.tensors.has(key):
            raise self.tensors.malformed(f"{WEIGHTS_NAME} has no {key!r}")
        return self.tensors.read(key, size)


def guess_base(files: AdapterFiles) -> tuple[int, int]:
    """Layers that the config names (1 where it does not), and the width of the stored rows."""
    layers = files.json(CONFIG_NAME).get("num_layers")
    info = files.tensors(WEIGHTS_NAME).infos.get(EMBEDDINGS)
    width = info.shape[-1] if info is not None and info.shape else 0
    return (layers if type(layers) is int and layers > 0 else 1), width
