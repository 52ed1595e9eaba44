"""A family's tool parser: find calls in an answer, and force answers to be calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.pipeline.tools.call_stream import CallFormat, CallStream
from turret_server.pipeline.tools.calls import ContentDelta, ToolCall, ToolCallDelta

_PIECE = 256  # characters; a stream copies what is left of a piece at every change of mode
MAX_CALLS = 16  # of one constrained answer: a small model would not stop by itself


@dataclass(frozen=True, slots=True)
class Function:
    """A function that an answer may call, with the schema that its arguments must follow."""

    name: str
    schema: str  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGrammar:
    """Answers that are calls, as Lark rules, in the form that a family's models were trained on.

    The rules may use `open` and `close`, the markers of the format, `call`, one call object, and
    `calls`, one or more of them with commas between.
    """

    block: str
    between_blocks: str | None  # None: an answer has one block
    arguments_key: str
    can_follow_text: bool  # whether `open` tells a block from the text before it


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolParser:
    """How one family of models calls tools. Stateless.

    Attributes:
        name: of the family, as a user would select it.
        detect: tells from a chat template whether a model belongs to the family.
    """

    name: str
    detect: Callable[[str], bool]
    format: CallFormat
    call_grammar: CallGrammar

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must reach the parser even where they are special tokens."""
        return tuple(filter(None, (self.format.open, self.format.close)))

    def stream(self) -> CallStream:
        """Return the state for one streamed answer."""
        return CallStream(self.format)

    def parse(self, text: str) -> tuple[str | None, list[ToolCall]]:
        """Split a complete answer into its content, if it has any, and its calls.

        What is not a complete call in valid JSON stays content.
        """
        stream = CallStream(self.format, whole=True)
        content = ""
        calls: list[tuple[ToolCallDelta, list[str]]] = []
        deltas = [
            delta
            for at in range(0, len(text), _PIECE)
            for delta in stream.push(text[at : at + _PIECE])
        ]
        for delta in [*deltas, *stream.finish()]:
            if isinstance(delta, ContentDelta):
                content += delta.text
            elif delta.name is not None:
                calls.append((delta, []))
            else:
                calls[-1][1].append(delta.arguments)
        return content or None, [
            ToolCall(head.id or "", head.name or "", "".join(arguments))
            for head, arguments in calls
        ]

    def grammar(
        self,
        functions: Sequence[Function],
        tokenizer: Tokenizer,
        *,
        parallel: bool = True,
        optional: bool = False,
    ) -> str:
        """Return a Lark grammar of answers that call `functions`.

        Args:
            functions: one or more.
            tokenizer: decides whether a marker is one token or text.
            parallel: allow several calls.
            optional: allow text, and nothing but text; only calls are constrained.

        Raises:
            ValueError: `optional`, where this family cannot tell a call from text in time.
        """
        shape = self.call_grammar
        if optional and not shape.can_follow_text:
            raise ValueError(f"{self.name} calls cannot be told from text while they are written")
        several = parallel and shape.between_blocks is not None
        opens = _marker(self.format.open, tokenizer)
        if optional:
            rules = [f"start: {'block*' if several else 'block?'} TEXT", r"TEXT: /(.|\n)*/"]
            if opens.startswith('"'):  # spelled out: its first appearance counts
                rules.append(f"trigger[lazy]: TEXT {opens}")
                opens = "trigger"
            else:
                opens = f"TEXT {opens}"
        elif several:
            rules = [f"start: block ({shape.between_blocks} block){{0,{MAX_CALLS - 1}}}"]
        else:
            rules = ["start: block"]
        more = f' (", " call){{0,{MAX_CALLS - 1}}}' if parallel else ""
        definitions = {
            "open": opens,
            "close": _marker(self.format.close, tokenizer),
            "calls": f"call{more}",
        }
        rules.append(f"block: {shape.block}")
        rules += [f"{n}: {rule}" for n, rule in definitions.items() if n in shape.block.split()]
        rules.append("call: " + " | ".join(f"call_{at}" for at in range(len(functions))))
        for at, function in enumerate(functions):
            name = json.dumps(function.name, ensure_ascii=False)
            head = f'{{"name": {name}, "{shape.arguments_key}": '
            rules.append(f'call_{at}: {_literal(head)} arguments_{at} "}}"')
            rules.append(f"arguments_{at}: %json {function.schema}")
        return "\n".join(rules) + "\n"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _marker(text: str, tokenizer: Tokenizer) -> str:
    token_id = tokenizer.token_id(text)
    return _literal(text) if token_id is None else f"<[{token_id}]>"
