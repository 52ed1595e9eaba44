"""Logit fusion as requests ask for it: methods by name, and the terms of formulas they stand for.

With M the logits of the request's own model, M_a those of the anchor, M_t those of expert t, p
their probabilities:

| method | logits | weights | anchor | experts |
|---|---|---|---|---|
| `proxy` (arXiv 2401.08565) | M + Σ w_t (M_t - M_a) | 1 | the experts' base | 1 or more |
| `ensemble` (arXiv 2402.06155) | of log-probabilities | 1 | the experts' base | 1 or more |
| `dexperts` (arXiv 2105.03023) | M + w (M_t - M_a), in M's nucleus | 2 | one of both | 0 or 1 |
| `contrastive` (arXiv 2210.15097) | M - w M_a, where plausible to M | 1 | the amateur | none |
| `guidance` (arXiv 2306.17806, 2305.14739) | M_a + w (M - M_a) | 1.5 | with less | none |
| `dynamic` (arXiv 2406.15480) | as `proxy`, w_t found per token | | the experts' base | 1 or more |
| `sum` | w_0 M + Σ w_t M_t | required | | 1 or more |
| `product` | Σ w_t log p_t | equal, of sum 1 | | 1 or more |
| `mixture` | log Σ w_t p_t | equal, of sum 1 | | 1 or more |

Log-probabilities are logits up to a constant per member, which no distribution sees: so `ensemble`
is `proxy`, and `product` is `sum`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from turret_server.engine.messages import Fusion, Member
from turret_server.errors import BadRequest

if TYPE_CHECKING:
    from turret_server.pipeline.adapter_weight import Weight
    from turret_server.pipeline.recipe import Recipe

MAX_WEIGHT = 16.0  # absolute; bodies are checked for it
DEFAULT_RANGE = 2.0  # where the paper's grid of dynamic weights ends

Method = Literal[
    "proxy", "ensemble", "dexperts", "contrastive", "guidance", "dynamic", "sum", "product",
    "mixture",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a method takes; experts are (least, most), `weight` is the default."""

    anchor: Literal["required", "optional", "none"]
    experts: tuple[int, int]
    weight: float | None = 1.0
    plausible: float = 0.0
    nucleus: float = 1.0


_MANY = 2**31
_RULES: dict[Method, _Rules] = {
    "proxy": _Rules("required", (1, _MANY)),
    "ensemble": _Rules("required", (1, _MANY)),
    "dexperts": _Rules("optional", (0, 1), weight=2.0, nucleus=0.9),
    "contrastive": _Rules("required", (0, 0), plausible=0.1),
    "guidance": _Rules("required", (0, 0), weight=1.5),
    "dynamic": _Rules("required", (1, _MANY), weight=None),
    "sum": _Rules("none", (1, _MANY), weight=None),
    "product": _Rules("none", (1, _MANY)),
    "mixture": _Rules("none", (1, _MANY)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """A member as a request describes it.

    Attributes:
        model: as in a body; None is the base where `adapters` are named, else the request's own.
        adapters: (name, weight) pairs stacked on it.
        prompt: text or token ids in place of the request's own.
        messages: a conversation in place of the request's own.
        system: the system message in place of the conversation's; "" for none.
        documents: it sees those of the request's conversation.
        temperature: of its logits.
    """

    model: str | None = None
    adapters: tuple[tuple[str, Weight], ...] = ()
    prompt: str | list[int] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    system: str | None = None
    documents: bool = True
    temperature: float = 1.0

    def __str__(self) -> str:
        stacked = "+".join(name for name, _ in self.adapters)
        return "+".join(filter(None, (self.model, stacked))) or "itself"

    @property
    def is_own(self) -> bool:
        """Is it the request's own model, with another prompt or temperature?"""
        return self.model is None and not self.adapters

    @property
    def sees_documents(self) -> bool:
        """Are documents of the request in its prompt?"""
        return self.documents and self.prompt is None and self.messages is None


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSpec:
    """A fusion as a request describes it; None is the method's default.

    Attributes:
        method: see the module.
        experts: more members.
        anchor: the member that others are compared with.
        weights: one for all experts, or one each; in `sum`, `product` and `mixture` one for every
            member, the request's own first.
        temperature: of the request's own logits.
        plausible: tokens stay whose probability is this share of the likeliest's, by the request's
            own model.
        nucleus: tokens stay that are among the likeliest of this probability, likewise.
        range: the largest dynamic weight.
        search: how dynamic weights are found: the minimum, or the published grid.
        joint: all experts of `dynamic` act at once; otherwise one per token, as published.
        trace: answers carry the weights beside log-probabilities.
    """

    method: Method
    experts: tuple[MemberSpec, ...] = ()
    anchor: MemberSpec | None = None
    weights: float | tuple[float, ...] | None = None
    temperature: float = 1.0
    plausible: float | None = None
    nucleus: float | None = None
    range: float | None = None
    search: Literal["exact", "grid"] = "exact"
    joint: bool = False
    trace: bool = False

    @property
    def members(self) -> tuple[MemberSpec, ...]:
        """All but the request's own, in the order of the terms: the anchor, then the experts."""
        return self.experts if self.anchor is None else (self.anchor, *self.experts)

    def __str__(self) -> str:
        parts = [str(expert) for expert in self.experts]
        if self.anchor is not None:
            parts.append(f"anchor={self.anchor}")
        return f"{self.method}({', '.join(parts)})"

    @property
    def params(self) -> tuple[str, ...]:
        """Where each of `members` stands in a body."""
        experts = tuple(f"fusion.experts[{i}]" for i in range(len(self.experts)))
        return experts if self.anchor is None else ("fusion.anchor", *experts)


@dataclass(frozen=True, slots=True)
class FusedRecipe:
    """A fusion whose members are resolved.

    Attributes:
        spec: what was asked for.
        recipes: of `spec.members`.
        weights: of the terms: the request's own, then those of `spec.members`.
    """

    spec: FusionSpec
    recipes: tuple[Recipe, ...]
    weights: tuple[float, ...]

    def message(self, own: Recipe, prompt: list[int], prompts: Sequence[list[int]]) -> Fusion:
        """What the engine is told. Members that are equal run once; those of weight 0 do not.

        Args:
            own: the request's recipe.
            prompt: its prompt.
            prompts: of `spec.members`.
        """
        spec = self.spec
        kinds = [
            Member(prompt=prompt, adapters=own.adapters),
            *(
                Member(prompt=tokens, adapters=recipe.adapters, model=recipe.auxiliary)
                for tokens, recipe in zip(prompts, self.recipes, strict=True)
            ),
        ]
        heat = (spec.temperature, *(member.temperature for member in spec.members))
        is_dynamic = spec.method == "dynamic"
        counts = [i == 0 or is_dynamic or w != 0 for i, w in enumerate(self.weights)]
        members: list[Member] = []
        terms: list[int] = []
        for kind, count in zip(kinds, counts, strict=True):
            if count:
                if kind not in members:
                    members.append(kind)
                terms.append(members.index(kind))
        rules = _RULES[spec.method]
        return Fusion(
            members=tuple(members[1:]),
            terms=tuple(terms),
            weights=tuple(w for w, count in zip(self.weights, counts, strict=True) if count),
            temperatures=tuple(t for t, count in zip(heat, counts, strict=True) if count),
            mixture=spec.method == "mixture",
            plausible=rules.plausible if spec.plausible is None else spec.plausible,
            nucleus=rules.nucleus if spec.nucleus is None else spec.nucleus,
            limit=(spec.range or DEFAULT_RANGE) if is_dynamic else 0.0,
            grid=is_dynamic and spec.search == "grid",
            joint=spec.joint,
            trace=spec.trace,
        )


def check(spec: FusionSpec, max_members: int) -> None:
    """Does a fusion have what its method needs, and nothing that it does not read?

    Raises:
        BadRequest: it does not.
    """
    method, rules = spec.method, _RULES[spec.method]
    if (count := 1 + len(spec.members)) > max_members:
        raise BadRequest(
            f"the fusion has {count} members",
            f"at most {max_members} are allowed, the request's own model among them",
            "Fuse fewer, or raise --max-fusion-members.",
            param="fusion",
        )
    if spec.anchor is None and rules.anchor == "required":
        raise _wrong(method, "anchor", "needs an anchor, and has none", _ANCHORS[method])
    if spec.anchor is not None and rules.anchor == "none":
        raise _wrong(method, "anchor", "has no anchor", "Leave it out, or use another method.")
    least, most = rules.experts
    if not least <= (count := len(spec.experts)) <= most:
        needed = "no experts" if most == 0 else f"{'at most 1' if most == 1 else '1 or more'}"
        raise _wrong(
            method, "experts", f"takes {needed}, and has {count}", "Name them as fusion.experts."
        )
    if method == "dexperts" and not spec.members:
        raise _wrong(method, "experts", "needs an expert or an anchor", "Name one of both.")
    only = {
        "range": spec.range is not None,
        "search": spec.search != "exact",
        "joint": spec.joint,
    }
    for name, is_given in only.items():
        if is_given and method != "dynamic":
            raise _wrong(method, name, f"has no {name!r}", "Leave it out, or use dynamic.")
    if spec.joint and spec.search == "grid":
        raise _wrong(method, "joint", "has no grid for all experts at once", "Use one of both.")


_ANCHORS = {
    "proxy": "Name what the experts were tuned from, as fusion.anchor.",
    "ensemble": "Name what the experts were tuned from, as fusion.anchor.",
    "dynamic": "Name what the experts were tuned from, as fusion.anchor.",
    "contrastive": "Name the amateur as fusion.anchor.",
    "guidance": "Give the other prompt: fusion.negative_prompt, or fusion.anchor.messages.",
}


def term_weights(spec: FusionSpec) -> tuple[float, ...]:
    """The weights of the request's own model and of `spec.members`; 0 where they are found.

    Raises:
        BadRequest: there are too many or too few, or none that mix.
    """
    count = len(spec.members)
    match spec.method:
        case "dynamic":
            if spec.weights is not None:
                raise _wrong("dynamic", "weights", "finds its weights", "Leave them out.")
            return (0.0,) * (count + 1)
        case "sum" | "product" | "mixture":
            return _given(spec, count + 1, 1 / (count + 1))
        case "contrastive":
            return (1.0, -_given(spec, 1)[0])
        case "guidance":
            weight = _given(spec, 1)[0]
            return (weight, 1 - weight)
        case "dexperts":
            weight = _given(spec, 1)[0]
            if spec.anchor is None:
                return (1 - weight, weight)
            return (1.0, -weight, weight) if spec.experts else (1 + weight, -weight)
        case "proxy" | "ensemble":
            weights = _given(spec, len(spec.experts))
            return (1.0, -sum(weights), *weights)


def _given(spec: FusionSpec, count: int, equal: float | None = None) -> tuple[float, ...]:
    """`count` weights, the method's default where the request names none."""
    method, weights = spec.method, spec.weights
    if weights is None:
        default = equal if equal is not None and method != "sum" else _RULES[method].weight
        if default is None:
            raise _wrong(method, "weights", "needs weights", f"Give {count} numbers.")
        return (default,) * count
    if not isinstance(weights, tuple):
        weights = (weights,) * (count if equal is None else 1)
    if len(weights) != count:
        whose = "one for each expert" if equal is None else "one per member, your own model first"
        raise _wrong(
            method, "weights", f"has {len(weights)} weights, not {count}", f"Give {whose}."
        )
    if method == "mixture" and (min(weights) < 0 or max(weights) == 0):
        raise _wrong(
            method, "weights", "mixes probabilities", "Let none be below 0, and one above."
        )
    return weights


def _wrong(method: str, field: str, why: str, fix: str) -> BadRequest:
    return BadRequest(
        f"the fusion {method!r} cannot be served", f"it {why}", fix, param=f"fusion.{field}"
    )
