"""From what a request calls its model to an immutable recipe of adapters.

Grammar of a model name, tried in this order: a base name; a named recipe of the configuration; an
adapter; `part ("+" part)*` with `part = adapter [":" weight]`. What `adapters` lists is stacked on
top. Nothing falls back to the base: an unknown name is an error.

A named recipe may be fused, and a request may bring a fusion of its own: see `fusion.py`. Its
members are resolved like requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import itemgetter

import msgspec

from turret_adapters import weight_table
from turret_adapters.catalog import AdapterRecord, Catalog
from turret_adapters.derivation import Derivation
from turret_server.engine.messages import AdapterUse
from turret_server.errors import BadRequest, NotFound, TurretError, Unprocessable
from turret_server.pipeline.adapter_weight import Weight, spell_out
from turret_server.pipeline.fusion import FusedRecipe, FusionSpec, MemberSpec, check, term_weights
from turret_server.pipeline.names import Names
from turret_server.pipeline.rerank import RerankSpec
from turret_server.tenancy.principal import Tenant

MAX_ADAPTERS = 16  # of one recipe
COMPOSED = "composed"  # the label of stacks that have no name
_MAX_COMPARED = 100  # names that an unknown one is compared with

Stack = tuple[tuple[str, Weight], ...]  # adapters with their weights


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one request runs.

    Attributes:
        model: the name to show in the response.
        adapters: digests with weights, in the order they were named; empty for the base. What has
            weight 0 is not there.
        digest: identity of the adapted model; equal recipes give equal digests.
        label: a name of bounded variety for metrics: a base, adapter or recipe name, else
            COMPOSED.
        num_virtual_tokens: positions that the adapters put before the prompt.
        fusion: with further members, whose logits are combined with this one's.
        auxiliary: of a member, the name of the auxiliary model; "" for the main one.
    """

    model: str
    adapters: tuple[AdapterUse, ...]
    digest: str
    label: str
    num_virtual_tokens: int = 0
    fusion: FusedRecipe | None = None
    auxiliary: str = ""

    @property
    def digests(self) -> list[str]:
        """The digests of the adapters, each once, of all members."""
        members = () if self.fusion is None else self.fusion.recipes
        uses = [*self.adapters, *(use for member in members for use in member.adapters)]
        return list(dict.fromkeys(use.digest for use in uses))


class RecipeBook:
    """Resolves names against the catalog.

    Args:
        catalog: the served adapters.
        base_names: names of the base model, the first being canonical.
        recipes: named stacks of the configuration: name -> expression such as "a:0.7+b", or
            (adapter, weight) pairs.
        fusions: those of named recipes that are fused; their stacks are the first members.
        max_members: of one fusion.
        auxiliaries: names of models that are members of fusions alone.
        reranks: those of named recipes that rerank.
    """

    def __init__(
        self,
        catalog: Catalog,
        base_names: Sequence[str],
        recipes: Mapping[str, str | Stack] | None = None,
        fusions: Mapping[str, FusionSpec] | None = None,
        max_members: int = 8,
        auxiliaries: Sequence[str] = (),
        reranks: Mapping[str, RerankSpec] | None = None,
    ) -> None:
        self.catalog: Catalog | Names = catalog
        self.base_names = tuple(base_names)
        self.recipes: dict[str, Stack] = {
            name: parse_stack(stack) if isinstance(stack, str) else tuple(stack)
            for name, stack in (recipes or {}).items()
        }
        self.fusions = dict(fusions or {})
        self.reranks = dict(reranks or {})
        self._max_members = max_members
        self.auxiliaries = tuple(auxiliaries)

    def over(
        self, catalog: Catalog, recipes: Mapping[str, Stack], fusions: Mapping[str, FusionSpec]
    ) -> RecipeBook:
        """The book as it would be with another catalog and other named recipes."""
        book = copy(self)
        book.catalog, book.recipes, book.fusions = catalog, dict(recipes), dict(fusions)
        return book

    def granted(self, tenant: Tenant) -> Tenant:
        """The tenant with what its grants include: a recipe's adapters come with the recipe."""
        recipes = [name for name in self.recipes if tenant.may_use(name)]
        parts = [part for name in recipes for part in self.mentioned(name)]
        return replace(tenant, grants=tenant.grants.union(parts))

    def seen_by(self, tenant: Tenant, names: Names) -> RecipeBook:
        """The book for a tenant: recipes that it was granted, and its names."""
        book = copy(self)
        book.catalog = names
        book.recipes = {n: stack for n, stack in self.recipes.items() if tenant.may_use(n)}
        book.fusions = {n: fusion for n, fusion in self.fusions.items() if n in book.recipes}
        book.reranks = {n: rerank for n, rerank in self.reranks.items() if n in book.recipes}
        return book

    def resolve(
        self,
        model: str | None = None,
        adapters: Sequence[tuple[str, Weight]] = (),
        fusion: FusionSpec | None = None,
    ) -> Recipe:
        """Resolve a request's `model`, `adapters` and `fusion`.

        Args:
            model: the name; None means the base.
            adapters: (name, weight) pairs to stack on what `model` names.
            fusion: with what to combine that.

        Raises:
            NotFound: a name that is not served; close matches are listed.
            BadRequest: a malformed weight, an adapter named twice, or too many of them; a fusion
                that lacks what its method needs.
            Unprocessable: a weight that the adapter cannot take, or a fusion of what is fused.
        """
        own = self._resolve(model, adapters)
        named = self.fusions.get(own.model)
        if named is not None and fusion is not None:
            raise _fused_already(own.model, "fusion")
        spec = named or fusion
        return own if spec is None else self._fuse(own, spec)

    def _fuse(self, own: Recipe, spec: FusionSpec) -> Recipe:
        check(spec, self._max_members)
        recipes = []
        for member, param in zip(spec.members, spec.params, strict=True):
            try:
                recipe = self._member(member) or own
            except TurretError as error:
                error.param = f"{param}.{error.param or 'model'}"
                raise
            if recipe is not own and recipe.model in self.fusions:
                raise _fused_already(recipe.model, f"{param}.model")
            recipes.append(recipe)
        fusion = FusedRecipe(spec, tuple(recipes), term_weights(spec))
        parts = (own.digest, *(recipe.digest for recipe in recipes), repr(spec))
        return replace(
            own,
            digest=hashlib.sha256("|".join(parts).encode()).hexdigest(),
            label=own.label if own.model in self.fusions else "fused",
            fusion=fusion,
        )

    def _member(self, member: MemberSpec) -> Recipe | None:
        """The recipe of a member; None for the request's own."""
        name = member.model
        if name is not None and name in self.auxiliaries:
            return self._resolve(name, member.adapters, auxiliary=name)
        return None if member.is_own else self._resolve(name, member.adapters)

    def _resolve(
        self, model: str | None, adapters: Sequence[tuple[str, Weight]], *, auxiliary: str = ""
    ) -> Recipe:
        """Resolve one member.

        Args:
            model: as for `resolve`; of a member that runs an auxiliary model, its name.
            adapters: as for `resolve`.
            auxiliary: the model that the adapters act on, "" for the main one.

        Raises:
            NotFound: a name that is not served; close matches are listed.
            BadRequest: a malformed weight, an adapter named twice, or too many of them.
            Unprocessable: an adapter of another model, or a weight that it cannot take.
        """
        model = self.base_names[0] if model is None else model
        label, named = (model, []) if auxiliary else self._parse(model)
        parts = [(name, weight, "model") for name, weight in named]
        parts += [(name, weight, f"adapters[{i}]") for i, (name, weight) in enumerate(adapters)]
        if len(parts) > MAX_ADAPTERS:
            raise BadRequest(
                f"{len(parts)} adapters in one request",
                f"at most {MAX_ADAPTERS} can be combined",
                param="adapters" if adapters else "model",
            )
        weights: dict[str, weight_table.Weight] = {}
        num_virtual_tokens = 0
        for name, weight, param in parts:
            record = self._record(name, param)
            if auxiliary not in record.num_layers:
                raise self._unfit(record, auxiliary, param)
            if record.digest in weights:
                raise BadRequest(
                    f"adapter {name!r} is named twice",
                    "each adapter's content may appear once in a request",
                    "Name it once and give it the sum of the weights.",
                    param=param,
                )
            num_layers = record.num_layers[auxiliary]
            weights[record.digest] = spelt = spell_out(weight, record, num_layers, param)
            num_virtual_tokens += record.num_virtual_tokens if spelt != 0 else 0
        # In an order of their own: a+b is b+a, to the last bit, and shares its prefixes.
        ordered = sorted(weights.items(), key=itemgetter(0))
        uses = tuple(AdapterUse(digest, weight) for digest, weight in ordered if weight)
        return Recipe(
            model=model,
            adapters=uses,
            digest=_digest(uses, auxiliary),
            label=COMPOSED if adapters else label,
            num_virtual_tokens=num_virtual_tokens,
            auxiliary=auxiliary,
        )

    def mentioned(
        self, model: str | None, adapters: Iterable[str] = (), fusion: FusionSpec | None = None
    ) -> list[str]:
        """Names in a request that may be adapters', whether they are served or not."""
        spec = fusion or self.fusions.get(model or "")
        members = spec.members if spec else ()
        names = [*adapters, *self._parts(model)]
        for member in members:
            names += [*(name for name, _ in member.adapters), *self._parts(member.model)]
        return list(dict.fromkeys(names))

    def missing(self, name: str) -> list[str]:
        """The adapters of a named recipe that are not loaded; with any, it is no model."""
        return [part for part in self.mentioned(name) if self.catalog.get(part) is None]

    def resolve_sources(self, derivation: Derivation) -> Derivation:
        """The derivation with folders in the place of names.

        Raises:
            NotFound: a source is not loaded.
            Unprocessable: a source is derived itself.
        """
        sources = []
        for i, source in enumerate(derivation.sources):
            record = self._record(source.path, f"sources[{i}]")
            if record.kind == "derived":
                raise Unprocessable(
                    f"{source.path!r} cannot be a source",
                    "it is derived itself",
                    "Name its sources.",
                    param=f"sources[{i}]",
                )
            found = {"path": record.path, "roots": record.roots, "digest": record.digest}
            sources.append(replace(source, **found))
        return replace(derivation, sources=tuple(sources))

    def served(self, name: str) -> bool:
        """Whether a name is that of a model or a named recipe: no adapter may take it."""
        return name in (*self.base_names, *self.auxiliaries) or name in self.recipes

    def _parts(self, model: str | None) -> list[str]:
        """The adapters that a name stands for, loaded or not."""
        if model is None or model in (*self.base_names, *self.auxiliaries):
            return []
        if model in self.recipes:
            return [part for part, _ in self.recipes[model]]
        if self.catalog.get(model) is not None or not ("+" in model or ":" in model):
            return [model]
        return [part.partition(":")[0] for part in model.split("+")]

    def _parse(self, model: str) -> tuple[str, list[tuple[str, Weight]]]:
        """(metric label, parts) of a model name."""
        if model in self.base_names:
            return self.base_names[0], []
        if model in self.recipes:
            return model, list(self.recipes[model])
        if self.catalog.get(model) is not None:
            # Metrics forget an adapter that leaves by the catalog's name for it.
            named = self.catalog.called(model) if isinstance(self.catalog, Names) else model
            return named, [(model, 1.0)]
        if "+" in model or ":" in model:
            return COMPOSED, list(parse_stack(model))
        raise self._unknown(model, "model")

    def _record(self, name: str, param: str) -> AdapterRecord:
        record = self.catalog.get(name)
        if record is None:
            raise self._unknown(name, param)
        return record

    def _unfit(self, record: AdapterRecord, auxiliary: str, param: str) -> Unprocessable:
        """What to say of an adapter that another model's member names."""
        name = record.name
        fits = [model or self.base_names[0] for model in record.num_layers]
        shown = f'{{"model": "{fits[0]}", "adapters": [{{"name": "{name}"}}]}}'
        return Unprocessable(
            f"the adapter {name!r} does not fit {auxiliary or self.base_names[0]!r}",
            record.unfit.get(auxiliary, "it was made for another model"),
            f"It fits {', '.join(fits)}: name it as {shown}"
            + (", a member of a fusion." if fits[0] in self.auxiliaries else "."),
            param=param,
        )

    def _unknown(self, name: str, param: str) -> NotFound:
        """What to say of a name that is no model, or no adapter where one is needed."""
        if name in self.auxiliaries:
            return NotFound(
                f"{name!r} is no model",
                "it is an auxiliary model, a member of fusions alone",
                "Name it in fusion.experts or as fusion.anchor.",
                param=param,
            )
        if name in self.base_names or name in self.recipes:
            stack = show_stack(self.recipes.get(name, ()))
            return NotFound(
                f"{name!r} is no adapter",
                f"it is {'a recipe' if name in self.recipes else 'the base model'}, and only "
                "adapters are stacked",
                f"Name its adapters: {stack}." if stack else "Leave it out.",
                param=param,
            )
        known = [*self.base_names, *self.recipes, *self.catalog.names()]
        if len(known) > _MAX_COMPARED:  # comparing a thousand names takes 20 ms of the event loop
            known = [other for other in known if other[:2] == name[:2]][:_MAX_COMPARED]
        close = get_close_matches(name[:256], known, n=3, cutoff=0.5)
        return NotFound(
            f"the model {name[:256]!r} does not exist",
            "it is neither the base model nor an adapter that is loaded",
            f"Did you mean {' or '.join(map(repr, close))}?"
            if close
            else "GET /v1/models lists what is served.",
            param=param,
        )


def parse_stack(expression: str) -> Stack:
    """The parts of `a:0.7+b`.

    Raises:
        BadRequest: a weight is no number.
    """
    return tuple(_part(text) for text in expression.split("+"))


def show_stack(stack: Stack) -> str:
    """`a:0.7+b`; a table of weights is written out."""
    return "+".join(name if weight == 1 else f"{name}:{_shown(weight)}" for name, weight in stack)


def _shown(weight: Weight) -> str:
    if not isinstance(weight, dict):
        return f"{weight:g}"
    return "{" + ",".join(f"{module}:{w:g}" for module, w in weight.items()) + "}"


def _part(text: str) -> tuple[str, Weight]:
    """`name` or `name:weight`; adapter names contain no colon."""
    name, colon, number = text.partition(":")
    if not colon:
        return name, 1.0
    try:
        return name, float(number)
    except ValueError:
        raise BadRequest(
            f"the weight {number[:64]!r} of adapter {name[:128]!r} is not a number",
            "a model name may read 'adapter:weight', as in 'sql:0.7+json'",
            param="model",
        ) from None


def _digest(uses: Iterable[AdapterUse], auxiliary: str) -> str:
    stack = msgspec.json.encode(list(uses), order="sorted")
    return hashlib.sha256(stack + auxiliary.encode()).hexdigest()


def _fused_already(model: str, param: str) -> Unprocessable:
    return Unprocessable(
        f"the model {model!r} cannot be fused with others",
        "it is a fusion itself",
        "Name its members.",
        param=param,
    )
