"""How texts and token ids reach an auxiliary model, whose vocabulary may not be the main one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turret_server.errors import BadRequest
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.tokenizer import Tokenizer


class AuxiliaryTokens:
    """Makes the prompts of an auxiliary model.

    Args:
        tokenizer: of its own.
        ids: by the main model's token ids, its own, -1 for what it lacks; None where both have one
            vocabulary.

    Attributes:
        chat: renders conversations.
        tokenizer, ids: as given.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int] | None = None) -> None:
        self.tokenizer, self.ids = tokenizer, ids
        self.chat = ChatPrompt(tokenizer)

    def translate(self, prompt: Sequence[int], param: str) -> list[int]:
        """A prompt of the main model's token ids in its own.

        Raises:
            BadRequest: it lacks one of them.
        """
        ids = self.ids or ()
        found = [ids[token] if token < len(ids) else -1 for token in prompt]
        if -1 in found:
            raise BadRequest(
                f"{param!r} cannot have the prompt of the request",
                f"its model lacks token {prompt[found.index(-1)]}",
                "Send a text, or give it a prompt of its own.",
                param=param,
            )
        return found


def id_map(
    main: Tokenizer, other: Tokenizer, pairs: Mapping[str, str | None] | None
) -> tuple[int, ...]:
    """The ids that another vocabulary has for the main one's tokens; -1 where it has none.

    Tokens that are spelt alike are paired, and so are the ends of answers.

    Args:
        main: the vocabulary of the ids.
        other: that of the values.
        pairs: further tokens with their counterparts, None for none; what is left is banned. None
            allows nothing to be left.

    Raises:
        ValueError: says which tokens are left, or are unknown.
    """
    own, known = main.vocabulary(), other.vocabulary()
    found = {token: known.get(token) for token in own}
    ends = [token for token, id in own.items() if id in main.eos_token_ids]
    for token in ends:
        if found[token] is None and other.eos_token_ids:
            found[token] = other.eos_token_ids[0]
    for token, counterpart in (pairs or {}).items():
        if token not in own or (counterpart is not None and counterpart not in known):
            raise ValueError(f"the pair of {token!r} and {counterpart!r} names an unknown token")
        found[token] = None if counterpart is None else known[counterpart]
    left = [token for token, id in found.items() if id is None]
    if pairs is None and left:
        raise ValueError(f"it lacks {len(left)} of {len(own)} tokens, {left[0]!r} among them")
    if any(token in left for token in ends):
        raise ValueError("no token of its own ends an answer")
    ids = [-1] * main.vocab_size
    for token, id in found.items():
        ids[own[token]] = -1 if id is None else id
    return tuple(ids)
