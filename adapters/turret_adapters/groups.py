"""How a decoder calls its sites: linears that share an input together, activations one by one."""

from __future__ import annotations

from enum import IntEnum

from turret_adapters.spec import ModelShape, Module


class Group(IntEnum):
    """Sites that the decoder computes in one GEMM, and the activations between them."""

    QKV = 0
    O = 1  # noqa: E741
    GATE_UP = 2
    DOWN = 3
    EMBED = 4
    HEAD = 5
    ATTENTION_IN = 6
    HEADS = 7
    ATTENTION_OUT = 8
    MLP_IN = 9
    ACT = 10
    INNER = 11
    MLP_OUT = 12
    HEAD_IN = 13
    BLOCK = 14

    @property
    def modules(self) -> tuple[Module, ...]:
        """The sites, in the order of their columns."""
        return _MODULES[self]

    @classmethod
    def of(cls, module: Module) -> Group:
        """The group that a module belongs to."""
        return _GROUP_OF[module]


_MODULES = {
    Group.QKV: (Module.Q, Module.K, Module.V),
    Group.O: (Module.O,),
    Group.GATE_UP: (Module.GATE, Module.UP),
    Group.DOWN: (Module.DOWN,),
    Group.EMBED: (Module.EMBED,),
    Group.HEAD: (Module.HEAD,),
    Group.ATTENTION_IN: (Module.ATTENTION_IN,),
    Group.HEADS: (Module.HEADS,),
    Group.ATTENTION_OUT: (Module.ATTENTION_OUT,),
    Group.MLP_IN: (Module.MLP_IN,),
    Group.ACT: (Module.ACT,),
    Group.INNER: (Module.INNER,),
    Group.MLP_OUT: (Module.MLP_OUT,),
    Group.HEAD_IN: (Module.HEAD_IN,),
    Group.BLOCK: (Module.BLOCK,),
}
_GROUP_OF = {module: group for group, modules in _MODULES.items() for module in modules}


def point(layer: int, group: Group) -> int:
    """A number for "this group in this layer" (-1 for embedding and head): a bit of a mask."""
    return (layer + 1) * len(Group) + group


def num_points(shape: ModelShape) -> int:
    """One more than the largest `point`."""
    return (shape.num_layers + 1) * len(Group)


def first_column(shape: ModelShape, module: Module) -> int:
    """The column at which a site begins in the output of its group."""
    modules = Group.of(module).modules
    return sum(shape.width(m) for m in modules[: modules.index(module)])
