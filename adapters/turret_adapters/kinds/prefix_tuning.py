"""Prefix tuning as PEFT saves it (Li and Liang, 2021): keys and values of m virtual tokens.

One stored row is one virtual token: layer 0's keys, layer 0's values, layer 1's keys, and so on.
The projection that training may have used is already applied. PEFT puts the keys into the cache as
they are, so their position is in them, and the prompt begins at position m.
"""

from __future__ import annotations

from turret_adapters.components import Component, Prefix
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.prompt_learning import VirtualTokens, guess_base
from turret_adapters.peft.tensors import is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_KNOWN = frozenset({"encoder_hidden_size", "init_weights", "prefix_projection"})


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "PREFIX_TUNING")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    virtual = VirtualTokens(files, shape, _KNOWN)
    width = shape.width(Module.K)
    virtual.expect("token_dim", width)
    if shape.head_dim:
        # Heads of another size would cut the same numbers differently.
        virtual.expect("num_attention_heads", width // shape.head_dim)
    rows = virtual.rows(2 * shape.num_layers * width)
    parts = rows.view(virtual.count, shape.num_layers, 2, width).permute(1, 2, 0, 3).contiguous()
    components: list[Component] = [
        Prefix(Site(layer, Module.K), keys, values) for layer, (keys, values) in enumerate(parts)
    ]
    return virtual.tensors.program("prefix_tuning", components, num_virtual_tokens=virtual.count)


def _guess_shape(files: AdapterFiles) -> ModelShape:
    layers, width = guess_base(files)
    return ModelShape(layers, {Module.K: (0, width // (2 * layers))})


KIND = Kind("prefix_tuning", _detect, _compile, _guess_shape)
