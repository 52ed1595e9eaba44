"""Composable sparse fine-tuning (Ansell et al., 2022, arXiv:2110.07560): `W' = W + S` anywhere.

`diffs` are sparse changes of parameters, `abs` are parameters that are replaced as a whole.
Published as a pickle, `pytorch_diff.bin`, which is not read. The same in safetensors is
`pytorch_diff.safetensors`; for a parameter P it holds `diffs.P.steps` (int64: the gaps between the
positions of its changes in column-major order, the first one counted from 0) and `diffs.P.values`,
or `abs.P`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from turret_adapters.components import Component, Offset, RowDelta, Scale, SparseDelta
from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.names import parse_name
from turret_adapters.spec import LINEARS, READERS, Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_FILE, _PICKLE = "pytorch_diff.safetensors", "pytorch_diff.bin"
_CONVERT = (
    'Convert it where you trust it: python -c "import torch, safetensors.torch as s; '
    f"d = torch.load('{_PICKLE}', weights_only=False); n = d.get('diffs') or {{}}; t = "
    "{f'diffs.{p}.steps': torch.tensor([int(i) for i in e['index_steps']]) for p, e in n.items()}; "
    "t |= {f'diffs.{p}.values': e['values'].contiguous() for p, e in n.items()}; "
    "t |= {f'abs.{p}': v.contiguous() for p, v in (d.get('abs') or {}).items()}; "
    f"s.save_file(t, '{_FILE}')\""
)
_EMBED, _HEAD = Site(-1, Module.EMBED), Site(-1, Module.HEAD)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        if not files.has(_FILE):
            why = f"{_PICKLE!r} is a pickle, which can run code; it is never read"
            raise AdapterUnsupported(self._what, why, _CONVERT)
        self._file, self._shape = files.tensors(_FILE), shape

    def program(self) -> Program:
        components: list[Component] = []
        for (site, part), keys in self._parameters().items():
            roles = set(keys)
            if roles not in ({"abs"}, {"steps", "values"}):
                raise self._malformed(
                    f"{site}.{part} has {' and '.join(sorted(roles))}, not abs, or steps and values"
                )
            if part == "bias":
                components.append(self._bias(site, keys))
            elif site.module in READERS:
                components.append(self._gain(site, keys))
            else:
                components += self._weight(site, keys)
        if not components:
            raise self._malformed("it changes nothing")
        return Program("sparse_ft", tuple(components))

    def _parameters(self) -> dict[tuple[Site, str], dict[str, str]]:
        """The keys by parameter ("weight" or "bias" of a site) and role."""
        found: defaultdict[tuple[Site, str], dict[str, str]] = defaultdict(dict)
        strangers: list[str] = []
        for key in self._file.infos:
            name, role = _split(key)
            parsed = parse_name(name, self._shape.has_post_norms)
            if role is None or parsed is None or not self._exists(parsed.site, parsed.role):
                strangers.append(key)
                continue
            keys = found[parsed.site, parsed.role[0]]
            if role in keys:
                raise self._malformed(f"{quote(keys[role])} and {quote(key)} are the same tensor")
            keys[role] = key
        if strangers:
            raise AdapterUnsupported(
                self._what,
                f"it holds {listing(strangers)}, and in this base no such parameter can be changed",
                "Load it on the base that it was trained on, or train it without them.",
            )
        return found

    def _exists(self, site: Site, role: tuple[str, ...]) -> bool:
        if not self._shape.has(site) or (site == _HEAD and self._shape.tied_head):
            return False
        return role == ("weight",) or (role == ("bias",) and site.module in self._shape.has_bias)

    def _bias(self, site: Site, keys: dict[str, str]) -> Offset:
        size = (self._shape.width(site.module),)
        if "abs" in keys:
            return Offset(site, self._read(keys["abs"], size).float(), absolute=True)
        places, values = self._changes(keys, size[0])
        return Offset(site, torch.zeros(size).index_add_(0, places, values))

    def _gain(self, site: Site, keys: dict[str, str]) -> Scale:
        base = self._base(self._shape.gain, site).float()
        if "abs" in keys:
            change = self._read(keys["abs"], tuple(base.shape)).float() - base
        else:
            change = torch.zeros_like(base).index_add_(0, *self._changes(keys, len(base)))
        gain = base + self._shape.gain_offset
        if ((gain == 0) & (change != 0)).any():
            raise AdapterUnsupported(
                self._what,
                f"it changes gains of {site} that are 0 in the base: what they would scale is lost",
                "Train it without the norms.",
            )
        return Scale(site, 1 + change / gain.where(gain != 0, 1))

    def _weight(self, site: Site, keys: dict[str, str]) -> list[Component]:
        """A linear, the head, or the embedding (and with it a head that is tied to it)."""
        fan_in, fan_out = self._shape.dims[site.module]
        size = (fan_in, fan_out) if site == _EMBED else (fan_out, fan_in)
        is_tied = site == _EMBED and self._shape.tied_head
        if "abs" in keys:
            if self._shape.is_quantized and site.module in LINEARS:
                raise AdapterUnsupported(
                    self._what,
                    f"it stores whole weights of {site}, and what changed cannot be told: "
                    "the base is quantized",
                    "Serve the base with --quantization none, or save the changes alone.",
                )
            new = self._read(keys["abs"], size).float()
            change = new - self._base(self._shape.weight, site).float()
            if site.module in LINEARS:
                outputs, inputs = change.nonzero(as_tuple=True)
                values = change[outputs, inputs]
                return [SparseDelta.from_entries(site, outputs, inputs, values, fan_out)]
            ids = change.any(1).nonzero().flatten()
            sites = (_EMBED, _HEAD) if is_tied else (site,)
            return [RowDelta(at, ids, change[ids]) for at in sites]
        places, values = self._changes(keys, size[0] * size[1])
        columns = places.div(size[0], rounding_mode="floor")
        rows = places - columns * size[0]
        if site != _EMBED:
            return [SparseDelta.from_entries(site, rows, columns, values, size[0])]
        ids, place = rows.unique(return_inverse=True)
        delta = torch.zeros(len(ids), size[1]).index_put_((place, columns), values)
        components: list[Component] = [RowDelta(_EMBED, ids, delta)]
        if is_tied:
            components.append(SparseDelta.from_entries(_HEAD, rows, columns, values, size[0]))
        return components

    def _changes(self, keys: dict[str, str], numel: int) -> tuple[Tensor, Tensor]:
        """Positions (int64, column-major, ascending) and values (float32) in a parameter."""
        count = self._file.infos[keys["values"]].shape
        if len(count) != 1 or count[0] > numel:
            raise self._malformed(
                f"{quote(keys['values'])} has shape {list(count)}, and there are {numel} elements"
            )
        steps = self._read(keys["steps"], count, integers=True)
        values = self._read(keys["values"], count).float()
        # The bound on a step keeps the sum from overflowing.
        if count[0] and (steps.amin() < 0 or steps.amax() >= numel or (steps[1:] == 0).any()):
            raise self._malformed(f"{quote(keys['steps'])} does not ascend within {numel} elements")
        places = steps.cumsum(0)
        if count[0] and places[-1] >= numel:
            raise self._malformed(
                f"{quote(keys['steps'])} leads to position {int(places[-1])} of {numel} elements"
            )
        return places, values

    def _read(self, key: str, size: tuple[int, ...], *, integers: bool = False) -> Tensor:
        info = self._file.infos[key]
        if info.shape != size:
            raise AdapterUnsupported(
                self._what,
                f"{quote(key)} has shape {list(info.shape)}, expected {list(size)}",
                "Load it on the base that it was trained on.",
            )
        if info.dtype != torch.int64 if integers else not info.dtype.is_floating_point:
            raise self._malformed(f"{quote(key)} is of {info.dtype}")
        tensor = self._file.read(key)
        if not integers and not is_finite(tensor):
            raise self._malformed(f"{quote(key)} holds NaN or infinity")
        return tensor

    def _base(self, read: Callable[[Site], Tensor] | None, site: Site) -> Tensor:
        if read is None:
            raise AdapterUnsupported(
                self._what,
                "what it computes depends on the base's weights, and no base is at hand",
                "Load it into a server of its base.",
            )
        return read(site).cpu()  # where the adapter's tensors are

    def _malformed(self, why: str) -> AdapterMalformed:
        return AdapterMalformed(self._what, why, "Convert it again from the published file.")


def _split(key: str) -> tuple[str, str | None]:
    """The parameter's name, and what the tensor is to it."""
    section, _, name = key.partition(".")
    if section == "abs":
        return name, "abs"
    name, _, role = name.rpartition(".")
    return name, role if section == "diffs" and role in ("steps", "values") else None


def _detect(files: AdapterFiles) -> bool:
    # A PEFT adapter beside it decides what the folder is.
    return (files.has(_FILE) or files.has(_PICKLE)) and not files.has("adapter_config.json")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    """Sparse changes tell how many elements a parameter has at least, not how they lie."""
    if not files.has(_FILE):
        return ModelShape(0, {})
    file = files.tensors(_FILE)
    dims: dict[Module, tuple[int, int]] = {}
    dims |= dict.fromkeys((*LINEARS, Module.EMBED, Module.HEAD), (1, 1))
    biased: set[Module] = set()
    num_layers = 0
    for key, info in file.infos.items():
        name, role = _split(key)
        if (parsed := parse_name(name)) is None:
            continue
        module = parsed.site.module
        num_layers = max(num_layers, parsed.site.layer + 1)
        if module not in dims:
            continue
        is_bias = parsed.role == ("bias",)
        if is_bias:
            biased.add(module)
        size = 1, 1
        if role == "steps" and info.dtype == torch.int64:
            count = int(file.read(key).sum()) + 1
            size = (1, count) if is_bias else (count, 1)
        elif role == "abs" and len(info.shape) == 2 - is_bias:
            rows, columns = (*info.shape, 1)[:2]
            size = (rows, columns) if module is Module.EMBED else (columns, rows)
        dims[module] = max(dims[module][0], size[0]), max(dims[module][1], size[1])
    return ModelShape(num_layers, dims, frozenset(biased))


KIND = Kind("sparse_ft", _detect, _compile, _guess_shape, files=(_FILE,))
