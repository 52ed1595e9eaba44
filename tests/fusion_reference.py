"""Logit fusion the slow way: each member through transformers, the papers' formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from turret_server.engine.messages import AdapterUse, Fusion
from turret_server.pipeline.fusion import FusedRecipe, FusionSpec, term_weights
from turret_server.pipeline.recipe import Recipe

Logits = NDArray[np.float64]  # [V]
Model = Callable[[list[int]], NDArray[np.float64]]  # token ids -> logits [positions, V]

GRID = np.arange(21) * 0.1


def message(
    spec: FusionSpec,
    model: str,
    prompt: list[int],
    uses: Mapping[str, tuple[AdapterUse, ...]],
) -> Fusion:
    """What the engine is told; members name their models, and bring token ids as prompts.

    A name that is not in `uses` is an auxiliary model's, alone or "with+an adapter".
    """

    def recipe(name: str) -> Recipe:
        model, _, adapter = name.partition("+")
        if name in uses:
            return Recipe(name, uses[name], name, name)
        return Recipe(name, uses.get(adapter, ()), name, name, auxiliary=model)

    members = tuple(recipe(member.model or model) for member in spec.members)
    prompts = [member.prompt or prompt for member in spec.members]
    assert all(isinstance(tokens, list) for tokens in prompts)
    return FusedRecipe(spec, members, term_weights(spec)).message(recipe(model), prompt, prompts)


def log_softmax(x: Logits) -> Logits:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def kl(log_p: Logits, log_q: Logits) -> float:
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def dynamic_loss(large: Logits, base: Logits, experts: Sequence[Logits], a: Sequence[float]):
    """Equation 8 of arXiv 2406.15480."""
    shift = sum(w * (expert - base) for w, expert in zip(a, experts, strict=True))
    log_p, fused, log_q = log_softmax(large), log_softmax(large + shift), log_softmax(base)
    total = 0.0
    for expert in experts:
        log_t = log_softmax(expert)
        total += (kl(fused, log_p) - kl(log_t, log_q)) ** 2
        total += (kl(log_p, fused) - kl(log_q, log_t)) ** 2
    return total


def combine(
    spec: FusionSpec,
    own: Logits,
    anchor: Logits | None,
    experts: Sequence[Logits],
    found: Sequence[float] = (),
) -> Logits:
    """The fused log-probabilities of one position, method by method, as its paper writes them.

    Args:
        spec: the fusion, with every number it needs.
        own: logits of the request's own model; the others are as `spec` names them.
        anchor: likewise.
        experts: likewise.
        found: dynamic weights of the experts, as the server found them.

    A token that a member lacks (-inf) is banned.
    """
    banned = np.any([x == -np.inf for x in (own, anchor, *experts) if x is not None], axis=0)
    own = own / spec.temperature
    anchor = None if anchor is None or spec.anchor is None else anchor / spec.anchor.temperature
    experts = [x / m.temperature for x, m in zip(experts, spec.experts, strict=True)]
    w = spec.weights
    match spec.method:
        case "proxy":
            z = own + sum(a * (e - anchor) for a, e in zip(w, experts, strict=True))
        case "ensemble":
            log = log_softmax
            z = log(own) + sum(a * (log(e) - log(anchor)) for a, e in zip(w, experts, strict=True))
        case "dexperts":
            # A missing expert or anti-expert is the base.
            plus, minus = experts[0] if experts else own, own if anchor is None else anchor
            z = own + w * (plus - minus)
        case "contrastive":
            z = log_softmax(own) - w * log_softmax(anchor)
        case "guidance":
            z = anchor + w * (own - anchor)
        case "dynamic":
            z = own + sum(a * (e - anchor) for a, e in zip(found, experts, strict=True))
        case "sum":
            z = sum(a * x for a, x in zip(w, [own, *experts], strict=True))
        case "product":
            z = sum(a * log_softmax(x) for a, x in zip(w, [own, *experts], strict=True))
        case "mixture":
            z = np.log(
                sum(a * np.exp(log_softmax(x)) for a, x in zip(w, [own, *experts], strict=True))
            )
    z = np.where(banned, -np.inf, z)
    p = np.exp(log_softmax(own))
    if spec.plausible is not None:
        z = np.where(p < spec.plausible * p.max(), -np.inf, z)
    if spec.nucleus is not None:
        order = np.argsort(-p)
        outside = order[np.cumsum(p[order]) - p[order] >= spec.nucleus]
        z[outside] = -np.inf
    return log_softmax(z)


def transformers_model(model: torch.nn.Module) -> Model:
    """A causal language model of transformers, or PEFT's wrapper around one."""

    def logits(tokens: list[int]) -> NDArray[np.float64]:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0].double().numpy()

    return logits


def check_answer(
    spec: FusionSpec,
    models: Sequence[Model],
    prompts: Sequence[list[int]],
    tokens: list[int],
    entries: Sequence,
    weights: Sequence[Sequence[float]] | None,
    tolerance: float,
    *,
    greedy: bool = True,
) -> float:
    """Is this what the reference says? Tokens, log-probabilities, alternatives.

    Args:
        spec: the fusion, with every number it needs.
        models: the request's own, then those of `spec.members`.
        prompts: of each.
        tokens: the answer.
        entries: a TokenLogprob per token.
        weights: of the terms per token, for dynamic fusion.
        tolerance: of log-probabilities.
        greedy: every token must be the likeliest.

    Returns:
        The largest error.
    """
    rows = [
        model(prompt + tokens)[len(prompt) - 1 :]
        for model, prompt in zip(models, prompts, strict=True)
    ]
    worst = 0.0
    for i, (token, entry) in enumerate(zip(tokens, entries, strict=True)):
        own, *others = (row[i] for row in rows)
        anchor, experts = (None, others) if spec.anchor is None else (others[0], others[1:])
        found: Sequence[float] = ()
        if weights is not None:
            found = weights[i][2:]
            best = min(dynamic_loss(own, anchor, experts, row) for row in grid_of(len(experts)))
            loss = dynamic_loss(own, anchor, experts, found)
            scale = dynamic_loss(own, anchor, experts, [0.0] * len(experts))
            assert loss <= best * (1 + 2e-3) + 1e-5 * scale + 1e-9, (i, loss, best)
        logprobs = combine(spec, own, anchor, experts, found)
        assert entry.token == token
        for one, value in [(token, entry.logprob), *entry.top]:
            if logprobs[one] == -np.inf:
                assert value == -np.inf, (i, one)
            else:
                worst = max(worst, abs(logprobs[one] - value))
        if greedy:
            assert logprobs.max() - logprobs[token] <= tolerance, (i, token, logprobs.argmax())
    assert worst <= tolerance, worst
    return worst


def grid_of(experts: int) -> list[list[float]]:
    """The published candidates: one expert acts, on a grid."""
    return [[a * (t == i) for t in range(experts)] for i in range(experts) for a in GRID]
