"""The tensors of a PEFT adapter against one base: by site and role, checked, none left unread."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from turret_adapters.base_names import same_model
from turret_adapters.components import Component
from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.own_format import OwnConfig
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.names import module_path
from turret_adapters.peft.roles import RoleOf, SiteTensors, collect, layer_prefix
from turret_adapters.peft.targets import Targets
from turret_adapters.spec import ModelShape, Module, Program, Site
from turret_adapters.tensor_file import is_finite

_SAFE = 1e38  # below float32's largest number


class PeftTensors:
    """One adapter's tensors, read for one base.

    A kind asks for what it expects; `program` then refuses whatever nobody asked for, because an
    adapter that is served without some of its tensors is another adapter.

    Args:
        files: the adapter's folder.
        shape: the base.
        config: its adapter_config.json; formats outside PEFT have another, or None.
        role_of: says what a tensor is to its module.
        weights_name: the file that holds the tensors.

    Attributes:
        sites: the tensors by site.
        shape: as given.
        notes: for the program.

    Raises:
        AdapterError: two tensors have one role, or a module does not exist in the base.
    """

    def __init__(
        self,
        files: AdapterFiles,
        shape: ModelShape,
        config: PeftConfig | OwnConfig | None,
        role_of: RoleOf,
        weights_name: str = WEIGHTS_NAME,
    ):
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        self._base_model = config.base_model if config is not None else None
        self._with = " with PEFT" if isinstance(config, PeftConfig) else ""
        self._file = files.tensors(weights_name)
        self._used: set[str] = set()
        self.shape = shape
        self.notes: list[str] = []
        self.sites, self._strangers = collect(self._file, role_of, shape.has_post_norms)
        self._prefix = layer_prefix(self.sites)
        foreign = [str(site) for site in sorted(self.sites) if not shape.has(site)]
        if foreign:
            raise self.wrong_base(
                f"it adapts {listing(foreign)}, and this base has {shape.num_layers} layers "
                f"with {', '.join(shape.dims)}"
            )

    def at(self, site: Site) -> SiteTensors:
        """The tensors of a site, none where nothing is stored for it."""
        path = module_path(site, self._prefix, self.shape.has_post_norms)
        return self.sites.get(site) or SiteTensors(path)

    def is_adapted(
        self, site: Site, roles: tuple[str, ...], targets: Targets, matched: bool | None = None
    ) -> bool:
        """Are a site's tensors there? The config and the file must agree.

        Args:
            site: the site.
            roles: all are needed.
            targets: what the config names.
            matched: whether it names the site, where `targets` alone does not tell.

        Raises:
            AdapterMalformed: one says yes and the other no, or some of the roles are missing.
        """
        tensors = self.at(site)
        present = [role for role in roles if role in tensors.keys]
        matched = targets.matches(tensors.path, site) if matched is None else matched
        if not present:
            if matched:
                raise self.malformed(
                    f"{targets} includes {tensors.path}, but its tensors are missing"
                )
            return False
        if matched is False:
            raise self.malformed(
                f"{quote(tensors.keys[present[0]])} is stored, but {targets} "
                f"does not include {tensors.path}"
            )
        for role in roles:
            if role not in tensors.keys:
                raise self.malformed(f"{tensors.path} has no {role}")
        return True

    def size(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor as stored. Check it before sizes follow from it."""
        return self._file.infos[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of a tensor as stored."""
        return self._file.infos[key].dtype

    def has(self, key: str) -> bool:
        """Is a tensor stored under this very name?"""
        return key in self._file.infos

    def read(
        self,
        key: str,
        size: tuple[int, ...],
        *,
        rank_dim: int | None = None,
        integers: bool | torch.dtype = False,
    ) -> Tensor:
        """A tensor of this size whose values are finite, in its stored dtype.

        Args:
            key: its name.
            size: its shape, which follows from base and config and never from the file.
            rank_dim: the dimension that the config's rank decides, for the message.
            integers: it holds integers, which are checked for their type alone; of this very
                type where one is given.

        Raises:
            AdapterError: it has another shape or type, or holds NaN or infinity.
        """
        self.check(key, size, rank_dim=rank_dim, integers=integers)
        self._used.add(key)
        tensor = self._file.read(key)
        if not integers:
            self._check_finite(key, tensor)
        return tensor

    def read_scaled(
        self, key: str, size: tuple[int, ...], scale: float, *, rank_dim: int | None = None
    ) -> Tensor:
        """The same times `scale`, in float32."""
        self.check(key, size, rank_dim=rank_dim)
        self._used.add(key)
        tensor = self._file.read(key)
        scaled = tensor.float() * scale
        if not self._file.largest * abs(scale) < _SAFE and not is_finite(scaled):
            self._check_finite(key, tensor)
            raise self.malformed(f"{quote(key)} times the scale {scale:g} overflows float32")
        return scaled

    def check(
        self,
        key: str,
        size: tuple[int, ...],
        *,
        rank_dim: int | None = None,
        integers: bool | torch.dtype = False,
    ) -> None:
        """As `read`, without reading the values."""
        info = self._file.infos[key]
        if isinstance(integers, torch.dtype) and info.dtype != integers:
            raise self.malformed(f"{quote(key)} is of {info.dtype}, not {integers}")
        if integers is True and info.dtype not in (torch.int64, torch.int32, torch.uint8):
            raise self.malformed(f"{quote(key)} is of {info.dtype}, not integers")
        if not integers and not info.dtype.is_floating_point:
            raise self.malformed(f"{quote(key)} is of {info.dtype}, not floating point")
        if info.shape == size:
            return
        why = f"{quote(key)} has shape {list(info.shape)}, expected {list(size)}"
        wrong_rank = rank_dim is not None and (
            len(info.shape) != len(size) or info.shape[rank_dim] != size[rank_dim]
        )
        if wrong_rank:
            raise self.malformed(f"{why}: it contradicts the rank in {CONFIG_NAME}")
        raise self.wrong_base(why)

    def check_rank(self, site: Site, rank: int) -> None:
        """Is there room for a branch of this rank? Ask before it is multiplied out.

        Raises:
            AdapterUnsupported: the rank exceeds the rank rows of a site.
        """
        if rank > self.shape.max_rank:
            raise self.unsupported(
                f"at {site} it is a low-rank branch of rank {rank}, and there are "
                f"{self.shape.max_rank} rank rows",
                f"Restart with --adapter-rank-rows {rank} or more.",
            )

    def ignore(self, key: str) -> None:
        """Nothing at serving time depends on this tensor."""
        self._used.add(key)

    def ignore_base_copy(self, site: Site) -> None:
        """PEFT repeats the base's embedding and head in the file whenever they are adapted.

        Raises:
            AdapterUnsupported: the copy differs from the base.
        """
        key = self.at(site).keys.get("weight")
        if key is None or site.module not in (Module.EMBED, Module.HEAD):
            return
        fan_in, fan_out = self.shape.dims[site.module]
        size = (fan_in, fan_out) if site.module is Module.EMBED else (fan_out, fan_in)
        if self.shape.weight is None:
            self.check(key, size)
            self.ignore(key)
            self.notes.append(
                f"{key} must repeat the base's {site}, or it is refused; it was not compared"
            )
            return
        copy, base = self.read(key, size), self.shape.weight(site).cpu()
        if not (torch.equal(copy.to(base.dtype), base) or torch.equal(base.to(copy.dtype), copy)):
            raise self.unsupported(
                f"{quote(key)} differs from the base's {site}: it stores full weights of modules; "
                "low-rank changes and offsets can be served",
                "Train it as LoRA on the unchanged embedding, or serve the merged model.",
            )

    def base_weight(self, site: Site) -> Tensor:
        """The base's weight [out, in] at a linear, float32, for formats that depend on it.

        On the host, where adapters are compiled; so are `base_rows`.

        Raises:
            AdapterUnsupported: there is no base at hand (`turret adapters inspect`).
        """
        return self._base(site).cpu().float()

    def base_rows(self, site: Site, ids: Tensor) -> Tensor:
        """Rows [len(ids), hidden] of the base's embedding or head, float32; raises as above."""
        if self.shape.tied_head:
            site = Site(-1, Module.EMBED)
        return self._base(site)[ids].cpu().float()

    def _base(self, site: Site) -> Tensor:
        if self.shape.weight is None:
            raise self.unsupported(
                "what it computes depends on the base's weights, and no base is at hand",
                "Load it into a server of its base.",
            )
        return self.shape.weight(site)

    def program(
        self,
        kind: str,
        components: list[Component],
        *,
        targets: Targets | None = None,
        is_ignored: Callable[[str], bool] = lambda key: False,
        **fields: object,
    ) -> Program:
        """The compiled adapter.

        Args:
            kind: name of the kind.
            components: what was compiled; at least one.
            targets: what the config names, for the message where nothing matched.
            is_ignored: tensors, by key, that nothing at serving time depends on.
            fields: further fields of the program.

        Raises:
            AdapterUnsupported: nothing was compiled, or a tensor was never read.
        """
        left = self._strangers + [key for key in self._file.infos if key not in self._used]
        left = [key for key in dict.fromkeys(left) if not is_ignored(key)]
        left = [key for key in left if key not in self._used]
        if not components:
            held = f"holds {listing(left)}" if left else "holds no tensor"
            raise self.wrong_base(
                f"no module is matched: {targets or 'the config'}, the file {held}, and this base "
                f"has {', '.join(self.shape.dims)}"
            )
        if left:
            raise self.unsupported(
                f"nothing in it explains {listing(left)}: served without them it would be "
                "another adapter",
                f"Export the adapter again{self._with}.",
            )
        trained, served = self._base_model, self.shape.name
        if trained and served and not same_model(trained, served):
            self.notes.append(f"trained on {quote(trained)}, served on {quote(served)}")
        if targets is not None and targets.names is None:
            self.notes.append("target_modules is null: the stored tensors say what is adapted")
        return Program(kind, tuple(components), trained, tuple(self.notes), **fields)  # pyright: ignore[reportArgumentType]

    def wrong_base(self, why: str) -> AdapterUnsupported:
        """The error for an adapter that does not fit this base."""
        trained = self._base_model
        served = quote(self.shape.name) if self.shape.name else "this base"
        return self.unsupported(
            why,
            f"Load an adapter that was trained on {served}"
            + (f" (this one names {quote(trained)})." if trained else "."),
        )

    def unsupported(self, why: str, fix: str) -> AdapterUnsupported:
        """The error for what cannot be served."""
        return AdapterUnsupported(self._what, why, fix)

    def malformed(self, why: str, fix: str = "") -> AdapterMalformed:
        """The error for what makes no sense."""
        return AdapterMalformed(self._what, why, fix or f"Export the adapter again{self._with}.")

    def _check_finite(self, key: str, tensor: Tensor) -> None:
        if not math.isfinite(self._file.largest) and not is_finite(tensor):
            raise self.malformed(
                f"{quote(key)} holds NaN or infinity", "Its training diverged, or it is damaged."
            )


def is_peft(files: AdapterFiles, peft_type: str) -> bool:
    """Does the folder's config declare this type?"""
    return files.has(CONFIG_NAME) and files.json(CONFIG_NAME).get("peft_type") == peft_type
