"""Fused requests on their way to the engine: the members' prompts, and what they leave room for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turret_server.api.sampling import check_min_tokens
from turret_server.api.schema.fields import GenerationBody
from turret_server.api.service import Service
from turret_server.engine.messages import AuxiliaryInfo, EngineReady, Fusion, Sampling
from turret_server.errors import BadRequest, PromptTooLong, Unprocessable
from turret_server.pipeline.fusion import MemberSpec
from turret_server.pipeline.recipe import Recipe

Render = Callable[[MemberSpec, Recipe, str], Awaitable["list[int] | None"]]


@dataclass(frozen=True, slots=True)
class MemberPrompts:
    """The prompts of a fused request's further members.

    Attributes:
        recipe: of the request.
        own: of each member; None where it shares the request's.
    """

    recipe: Recipe
    own: tuple[list[int] | None, ...]

    def fuse(self, prompt: list[int]) -> Fusion | None:
        """What the engine is told beside a prompt of the request; None if nothing is fused."""
        if self.recipe.fusion is None:
            return None
        return self.recipe.fusion.message(self.recipe, prompt, self._all(prompt))

    def fit(
        self, service: Service, body: GenerationBody, prompt: list[int], max_tokens: int
    ) -> int:
        """How many tokens an answer to a prompt may have.

        Args:
            service: of the app.
            body: of the request; where it asks for no number, there may be fewer.
            prompt: of the request.
            max_tokens: as its own model allows.

        Raises:
            PromptTooLong: a member leaves no room for them, or all together do not.
            BadRequest: the least answer is longer.
        """
        fused = self.recipe.fusion
        if fused is None:
            return max_tokens
        ready = service.ready
        asked = body.max_tokens is not None or getattr(body, "max_completion_tokens", 0)
        places = (None, *fused.spec.params)
        recipes = (self.recipe, *fused.recipes)
        running: list[tuple[Recipe, list[int]]] = []  # equal members run once
        for recipe, tokens, param in zip(
            recipes, [prompt, *self._all(prompt)], places, strict=True
        ):
            length = len(tokens) + recipe.num_virtual_tokens
            context = _context(ready, recipe)
            room = context.max_model_len - length
            if room < 1 or (asked and room < max_tokens):
                raise PromptTooLong(
                    f"the prompt of '{param}' has {length} tokens",
                    f"the context holds {context.max_model_len}, and the answer may have "
                    f"{max_tokens}",
                    "Shorten it, or ask for fewer tokens.",
                    param=param,
                )
            max_tokens = min(max_tokens, room)
            if all(
                (recipe.adapters, recipe.auxiliary, tokens) != (r.adapters, r.auxiliary, t)
                for r, t in running
            ):
                running.append((recipe, tokens))
        most = max_tokens
        for name in {recipe.auxiliary for recipe, _ in running}:
            mine = [(r, tokens) for r, tokens in running if r.auxiliary == name]
            count, size = len(mine), ready.kv_block_tokens
            total = sum(len(tokens) + r.num_virtual_tokens for r, tokens in mine)
            blocks = _context(ready, mine[0][0]).kv_blocks
            # A member takes up to a block more than its tokens.
            room = ((blocks - count) * size - total) // count
            if room < (max_tokens if asked else 1):
                raise PromptTooLong(
                    f"{count} members with {total} tokens of prompt do not fit",
                    f"the KV cache holds {blocks * size} tokens, and the answer may have "
                    f"{max_tokens} in each",
                    "Shorten the prompts, or ask for fewer tokens.",
                    param="fusion",
                )
            most = min(most, room)
        check_min_tokens(body, most)
        return most

    def shared_context(self, service: Service, bare: list[int]) -> int:
        """How many tokens a fused request's prompt with its documents, and its answer, may have.

        Members may add more to the documents than the request does, or hold less.

        Args:
            service: of the app.
            bare: the request's prompt without the documents; these are the members' without them.
        """
        fused, ready = self.recipe.fusion, service.ready
        assert fused is not None
        most = ready.max_model_len - self.recipe.num_virtual_tokens
        members = zip(fused.spec.members, fused.recipes, self._all(bare), strict=True)
        for member, recipe, tokens in members:
            if member.sees_documents:
                room = _context(ready, recipe).max_model_len - recipe.num_virtual_tokens
                most = min(most, room - max(0, len(tokens) - len(bare)))
        return most

    def _all(self, prompt: list[int]) -> list[list[int]]:
        return [prompt if own is None else own for own in self.own]


def _context(ready: EngineReady, recipe: Recipe) -> EngineReady | AuxiliaryInfo:
    """What knows the context and the cache of a recipe's model."""
    return ready.auxiliaries[recipe.auxiliary] if recipe.auxiliary else ready


async def member_prompts(recipe: Recipe, render: Render) -> MemberPrompts:
    """The prompts of the members of a recipe.

    Args:
        recipe: of a request.
        render: the prompt of one member, None if it shares the request's; its last argument
            names the member in errors.

    Raises:
        TurretError: as `render`.
    """
    fused = recipe.fusion
    if fused is None:
        return MemberPrompts(recipe, ())
    members = zip(fused.spec.members, fused.recipes, fused.spec.params, strict=True)
    return MemberPrompts(recipe, tuple([await render(*member) for member in members]))


def check_fused(
    service: Service, body: GenerationBody, recipe: Recipe, count: int, sampling: Sampling
) -> None:
    """Refuse what a fused request cannot have.

    Args:
        service: of the app.
        body: of the request.
        recipe: of the request.
        count: of answers.
        sampling: of each.

    Raises:
        BadRequest, Unprocessable.
    """
    fused = recipe.fusion
    if fused is None:
        return
    if sampling.prompt_logprobs is not None:
        raise Unprocessable(
            "a fused request has no log-probabilities of its prompt",
            "its members are combined from the first token of the answer on",
            "Leave prompt_logprobs out, and logprobs or echo.",
            param="echo" if body.prompt_logprobs is None else "prompt_logprobs",
        )
    if body.fusion is not None and body.fusion.trace and sampling.logprobs is None:
        raise BadRequest(
            "'fusion.trace' needs 'logprobs'",
            "the weights are given beside log-probabilities",
            "Ask for logprobs.",
            param="fusion.trace",
        )
    members = 1 + len(fused.recipes)
    if count * members > service.settings.max_choices:
        raise BadRequest(
            f"the request asks for {count} answers of {members} members each",
            f"at most {service.settings.max_choices} members run for one request",
            "Lower n or best_of, or send fewer prompts.",
            param="n",
        )


def member_messages(
    member: MemberSpec,
    messages: Sequence[Mapping[str, Any]],
    bare: Sequence[Mapping[str, Any]],
    param: str,
) -> list[dict[str, Any]] | None:
    """The conversation of a member in a chat; None if it is the request's own.

    Args:
        member: of a fusion.
        messages: of the request, with its documents as text.
        bare: of the request without its documents; the same object where it has none.
        param: names the member in errors.

    Raises:
        BadRequest: the member has several prompts.
    """
    given = [member.prompt, member.messages, member.system]
    if sum(one is not None for one in given) > 1:
        raise BadRequest(
            f"{param!r} has more than one prompt",
            "prompt, messages and system exclude each other",
            "Keep one of them.",
            param=param,
        )
    if isinstance(member.prompt, str):
        return [{"role": "user", "content": member.prompt}]
    if member.prompt is not None:
        raise BadRequest(
            f"'{param}.prompt' is a list of token ids",
            "a conversation is made of texts",
            "Send a text, or messages.",
            param=f"{param}.prompt",
        )
    if member.messages is not None:
        return [dict(message) for message in member.messages]
    shown = messages if member.documents else bare
    if member.system is None:
        return None if shown is messages else [dict(message) for message in shown]
    rest = [dict(m) for m in shown if m.get("role") not in ("system", "developer")]
    return [{"role": "system", "content": member.system}, *rest] if member.system else rest
