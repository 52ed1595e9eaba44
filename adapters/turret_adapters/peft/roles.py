"""What each tensor of a file is to its module: sites and roles, from the names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from turret_adapters.errors import AdapterMalformed, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import WEIGHTS_NAME
from turret_adapters.peft.names import TensorName, parse_name
from turret_adapters.sites import READERS
from turret_adapters.spec import ModelShape, Module, Site
from turret_adapters.tensor_file import TensorFile

# What a tensor is to its module, from its name ("A", "B", …); None for a stranger.
RoleOf = Callable[[TensorName], str | None]


@dataclass(slots=True)
class SiteTensors:
    """The tensors of one module: its path in the trained model, and the key of each role."""

    path: str
    keys: dict[str, str] = field(default_factory=dict)


def collect(
    tensors: TensorFile, role_of: RoleOf, has_post_norms: bool = False
) -> tuple[dict[Site, SiteTensors], list[str]]:
    """The tensors by site and role, and the names that belong to no site.

    Args:
        tensors: the file.
        role_of: says what a tensor is to its module.
        has_post_norms: as the base's shape says.

    Raises:
        AdapterMalformed: two tensors have one role.
    """
    sites: dict[Site, SiteTensors] = {}
    strangers: list[str] = []
    for key in tensors.infos:
        name = parse_name(key, has_post_norms)
        role = name and role_of(name)
        if name is None or role is None:
            strangers.append(key)
            continue
        found = sites.setdefault(name.site, SiteTensors(name.path))
        if role in found.keys:
            raise AdapterMalformed(
                f"{tensors.name!r} was refused",
                f"{quote(found.keys[role])} and {quote(key)} are the same tensor of {name.path}",
                "Store one adapter per folder.",
            )
        found.keys[role] = key
    return sites, strangers


def simple_role(
    names: Mapping[str, str], *, suffixes: frozenset[str] = frozenset({"weight"})
) -> RoleOf:
    """Roles by the parameter's name: {"hada_w1_a": "w1_a"} reads `….hada_w1_a[.NAME][.weight]`.

    Names are what follows the module in PEFT's keys; the adapter's name, which old versions store,
    and a last part in `suffixes` are dropped. `weight` and `bias` of the module itself (also as
    `base_layer.weight`) have the roles "weight" and "bias".
    """

    def role_of(name: TensorName) -> str | None:
        first, *rest = name.role
        if first in names:
            if rest and rest[-1] in suffixes:
                rest = rest[:-1]
            return names[first] if len(rest) <= 1 else None
        if first == "base_layer" and len(rest) == 1:
            first, rest = rest[0], []
        return first if first in ("weight", "bias") and not rest else None

    return role_of


def guess_sizes(
    files: AdapterFiles,
    role_of: RoleOf,
    sizes: Callable[[dict[str, tuple[int, ...]]], tuple[int, int]],
) -> ModelShape:
    """The smallest base that the tensors fit, for `inspect`.

    Args:
        files: the adapter's folder.
        role_of: as for `PeftTensors`.
        sizes: (in, out) of a module from the shapes of its tensors by role; 0 where unknown.
    """
    tensors = files.tensors(WEIGHTS_NAME)
    dims: dict[Module, tuple[int, int]] = {}
    has_bias: set[Module] = set()
    num_layers = 0
    for site, found in collect(tensors, role_of)[0].items():
        shapes = {role: tensors.infos[key].shape for role, key in found.keys.items()}
        num_layers = max(num_layers, site.layer + 1)
        fan_in, fan_out = sizes(shapes)
        module, copy = READERS.get(site.module, site.module), shapes.get("weight", ())
        if module is not site.module:  # a norm's gains are as wide as the input of what reads it
            fan_in, fan_out = (copy or (0,))[0], 0
        elif module in (Module.EMBED, Module.HEAD) and len(copy) == 2:
            of_copy = copy if module is Module.EMBED else copy[::-1]
            fan_in, fan_out = fan_in or of_copy[0], fan_out or of_copy[1]
        known_in, known_out = dims.get(module, (0, 0))
        dims[module] = fan_in or known_in, fan_out or known_out
        if "bias" in shapes:
            has_bias.add(site.module)
    return ModelShape(num_layers, dims, frozenset(has_bias))


def layer_prefix(sites: dict[Site, SiteTensors]) -> str:
    """What precedes "layers" in most of the stored names."""
    prefixes = Counter(x.path.split("layers.")[0] for site, x in sites.items() if site.layer >= 0)
    return prefixes.most_common(1)[0][0] if prefixes else "model."
