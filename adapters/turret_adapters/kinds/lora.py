"""LoRA as PEFT saves it: `W' = W + s B A` (Hu et al., 2021), with what PEFT 0.21 can add to it.

Whatever training did (EVA, MiCA, VeLoRA, MonteCLoRA, orthogonal), the loaded adapter is plain low
rank. Some store the factors in another form (QALoRA, BD-LoRA), some subtract a part of the base's
weight (PiSSA, OLoRA, KaSA), some scale the result (DoRA), some act from a position on (aLoRA); see
`_Compiler._low_rank` for the order. Refused by name: what depends on more than file and base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, LowRank, Offset, Scale
from turret_adapters.digest import canonical
from turret_adapters.errors import quote
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.base_parts import balanced, largest, leading_columns, smallest
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME
from turret_adapters.peft.factors import block_diagonal, pooled
from turret_adapters.peft.lora_config import LoraSettings, Taken
from turret_adapters.peft.low_rank import low_rank, new_bias
from turret_adapters.peft.names import TensorName
from turret_adapters.peft.plain_lora import Factors, Layouts, PlainLayout
from turret_adapters.peft.roles import guess_sizes
from turret_adapters.peft.saved_modules import new_gains, new_rows
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site
from turret_adapters.tensor_index import Index


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        self._settings = LoraSettings(files)
        self._tensors = PeftTensors(files, shape, self._settings.config, _role)
        self._shape = shape
        self._plain: list[Factors] = []

    def program(self) -> Program:
        settings, tensors = self._settings, self._tensors
        components: list[Component] = []
        for site in self._shape.sites():
            components += self._low_rank(site)
            components += self._biases(site)
            tensors.ignore_base_copy(site)
        components += new_gains(tensors, list(settings.modules_to_save))
        components += new_rows(tensors, settings.config)
        return tensors.program(
            "lora",
            components,
            targets=settings.targets,
            is_ignored=settings.is_training_state,
            positions=settings.positions,
        )

    def layout(self, index: Index, program: Program) -> PlainLayout | None:
        """How to compile the next file with this header; None if more than the factors matters."""
        plain = self._plain
        if len(index.infos) != 2 * len(plain) or len(program.components) != len(plain):
            return None
        return PlainLayout(index, plain, program)

    def _low_rank(self, site: Site) -> list[Component]:
        settings, tensors, found = self._settings, self._tensors, self._tensors.at(site)
        matched = settings.matches(found.path, site)
        if "lora_B.bias" in found.keys and "lora_B" not in found.keys:
            raise tensors.malformed(f"{found.path} has no lora_B")
        if not tensors.is_adapted(site, self._roles, settings.targets, matched):
            return []
        rank = settings.rank(found.path)
        scale = settings.scale(found.path, rank)
        a, b = self._factors(site, rank, scale)
        if settings.taken is not Taken.NOTHING and site.module is not Module.EMBED:
            a, b = self._subtract(site, rank, scale, a, b)
        components: list[Component] = []
        if settings.has_magnitudes:
            b, components = self._scale_rows(site, a, b)
        if self._is_plain(site):  # and checked when it was read
            components.append(LowRank(site, a, b, published_scale=scale))
            self._plain.append(Factors(site, found.keys["lora_A"], found.keys["lora_B"], scale))
        else:
            components.append(low_rank(tensors, site, a, b))
        return components + self._branch_bias(site, scale)

    def _is_plain(self, site: Site) -> bool:
        """Are its factors the stored ones, but for the scale?"""
        settings, found = self._settings, self._tensors.at(site)
        is_whole = settings.blocks(found.path) == (1, 1) and settings.pool == 1
        changed = settings.has_magnitudes or settings.has_diagonal
        return is_whole and not changed and settings.taken is Taken.NOTHING

    @property
    def _roles(self) -> tuple[str, ...]:
        extra = (
            ("lora_magnitude_vector", self._settings.has_magnitudes),
            ("lora_diag", self._settings.has_diagonal),
        )
        return ("lora_A", "lora_B", *(role for role, wanted in extra if wanted))

    def _factors(self, site: Site, rank: int, scale: float) -> tuple[Tensor, Tensor]:
        """A [rank, in], as stored where it is stored whole, and s B transposed [rank, out]."""
        tensors, found = self._tensors, self._tensors.at(site)
        key_a, key_b = found.keys["lora_A"], found.keys["lora_B"]
        fan_in, fan_out = self._shape.dims[site.module]
        blocks_a, blocks_b = self._settings.blocks(found.path)
        if rank % blocks_a or fan_in % blocks_a or fan_out % blocks_b or rank % blocks_b:
            raise tensors.wrong_base(
                f"use_bdlora cuts {found.path} into blocks that do not fit rank {rank}, "
                f"{fan_in} inputs and {fan_out} outputs"
            )
        pool = self._pool(site, key_a)
        a = tensors.read(key_a, (rank, fan_in // blocks_a // pool), rank_dim=0)
        b = tensors.read_scaled(key_b, (fan_out, rank // blocks_b), scale, rank_dim=1)
        if pool > 1:
            a = pooled(a, pool)
        if blocks_a > 1:
            a = block_diagonal(a, blocks_a)
        if blocks_b > 1:
            b = block_diagonal(b, blocks_b)
        if self._settings.has_diagonal:
            a = a.float() * tensors.read(found.keys["lora_diag"], (rank,)).float()[:, None]
        return a, b.T.contiguous()

    def _pool(self, site: Site, key: str) -> int:
        """How many inputs share a column of A. PEFT pools on GPTQ bases alone, so look."""
        pool, fan_in = self._settings.pool, self._shape.dims[site.module][0]
        is_whole = self._tensors.size(key)[-1:] == (fan_in,)
        if pool == 1 or is_whole or fan_in % pool or site.module is Module.EMBED:
            return 1
        return pool

    def _subtract(
        self, site: Site, rank: int, scale: float, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The factors of `sBA - P(W)`, where training took P(W) away from the base first."""
        tensors, taken = self._tensors, self._settings.taken
        path = tensors.at(site).path
        if site.module is Module.HEAD and self._shape.tied_head:
            raise tensors.unsupported(
                f"training took {taken} away from {path}, and the embedding shares that weight",
                "Convert it with PEFT, or adapt the head apart.",
            )
        weight = tensors.base_weight(site)
        if taken is Taken.LEADING:
            part = leading_columns(weight, rank)
        else:
            part = (largest if taken is Taken.LARGEST else smallest)(weight, rank)
        if part is None or (taken is Taken.SMALLEST and rank >= min(weight.shape)):
            raise tensors.unsupported(
                f"training took {taken} away from {path}, which at rank {rank} this base does not "
                "determine closely enough",
                "Convert it with PEFT: model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial_adapter).",
            )
        factor = scale if taken is Taken.LEADING else 1.0
        part_a, part_b = part
        return balanced(torch.cat([a, part_a]), torch.cat([b, -factor * part_b]))

    def _scale_rows(self, site: Site, a: Tensor, b: Tensor) -> tuple[Tensor, list[Component]]:
        """DoRA (Liu et al., 2024): `y = u (Wx + sBAx) + bias`, u = magnitude / norm of the row.

        Our scale acts on `Wx + bias`, so an offset gives the bias back.
        """
        tensors, found = self._tensors, self._tensors.at(site)
        magnitude = tensors.read(found.keys["lora_magnitude_vector"], (b.shape[1],)).float()
        weight, a32 = tensors.base_weight(site), a.float()
        if site.module is Module.EMBED:  # [vocab, hidden]; a row of the weight is a column here
            norms = torch.addmm(weight, a32.T, b).norm(dim=0)
        else:
            norms = torch.addmm(weight, b.T, a32).norm(dim=1)
        u = magnitude / norms
        if not torch.isfinite(u).all():
            raise tensors.malformed(f"a row of the adapted weight of {found.path} is zero")
        components: list[Component] = [Scale(site, u, before_deltas=True)]
        bias = self._shape.bias(site) if self._shape.bias is not None else None
        if bias is None and site.module in self._shape.has_bias:
            raise tensors.unsupported(
                "DoRA depends on the base's biases, and no base is at hand",
                "Load it into a server of its base.",
            )
        if bias is not None:
            components.append(Offset(site, (1 - u) * bias.float().cpu()))
        return b * u, components

    def _branch_bias(self, site: Site, scale: float) -> list[Component]:
        settings, tensors, found = self._settings, self._tensors, self._tensors.at(site)
        is_stored = "lora_B.bias" in found.keys
        if is_stored != settings.has_branch_bias and site.module is not Module.EMBED:
            raise tensors.malformed(
                f"lora_bias is {str(settings.has_branch_bias).lower()}, but the bias of "
                f"lora_B at {found.path} is {'stored' if is_stored else 'missing'}"
            )
        if not is_stored:
            return []
        if settings.has_magnitudes:
            raise tensors.unsupported(
                f"{quote(found.keys['lora_B.bias'])} is a bias of lora_B beside use_dora",
                "PEFT does not train one; export the adapter without it.",
            )
        fan_out = self._shape.dims[site.module][1]
        return [Offset(site, tensors.read_scaled(found.keys["lora_B.bias"], (fan_out,), scale))]

    def _biases(self, site: Site) -> list[Offset]:
        wanted = self._settings.bias == "all" or (
            self._settings.bias == "lora_only" and "lora_A" in self._tensors.at(site).keys
        )
        # A bias that is not wanted stays unread and is refused as such.
        return new_bias(self._tensors, site) if wanted else []


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
    if first == "lora_magnitude_vector":
        return "lora_magnitude_vector" if len(rest) - (rest[-1:] == ["weight"]) <= 1 else None
    if first == "lora_diag" and not is_embedding:
        return "lora_diag" if len(rest) <= 1 else None
    if first == "token_adapter" and rest[:1] == ["trainable_tokens_delta"]:
        return "rows" if len(rest) <= 2 else None
    if first == "base_layer" and len(rest) == 1:
        first, rest = rest[0], []
    return first if first in ("weight", "bias") and not rest else None


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    fan_in = (shapes.get("lora_A") or (0,))[-1]
    return fan_in, (shapes.get("lora_B") or shapes.get("bias") or (0,))[0]


def _detect(files: AdapterFiles) -> bool:
    # LoRAMoE calls itself LORA, too.
    return is_peft(files, "LORA") and not files.json(CONFIG_NAME).get("lora_nums")


_layouts = Layouts()


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config, file = files.json(CONFIG_NAME), files.tensors(WEIGHTS_NAME)
    settings = canonical(config) + str(config.get("base_model_name_or_path")).encode()
    layout = _layouts.get(file.index, settings, shape)
    program = None if layout is None else layout.program(file)
    if program is None:
        compiler = _Compiler(files, shape)
        program = compiler.program()
        if layout := compiler.layout(file.index, program):
            _layouts.put(file.index, settings, shape, layout)
    return program


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _role, _sizes)


KIND = Kind("lora", _detect, _compile, _guess_shape)
