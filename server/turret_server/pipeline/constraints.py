"""What an answer must look like, as an llguidance grammar that the engine can follow.

Everything a user sends, schema, regular expression or grammar, is compiled in a sandbox first
(`grammar_sandbox`): what is invalid, or would take long, is refused before it reaches the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from turret_server.errors import BadRequest
from turret_server.pipeline.grammar_checker import GrammarChecker
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.pipeline.tools.parser import Function, ToolParser

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_REGEX_CHARS = 16 * 1024
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_CHOICES = 5_000
MAX_CHOICE_CHARS = 128 * 1024  # of all choices together

# Blanks as people and models write JSON: one space, or a line break and its indentation. With more
# allowed, a small model can write blanks until its tokens are spent.
_WHITESPACE = r" |\n[ \t]{0,40}"

# `\d` and `\w` as ECMAScript and the `pattern` of a JSON schema have them. Rust's take the digits
# of every script, which no program that reads the answer expects. A class may stand in a class,
# where "--" is a difference and any other "-" before it would be a range up to "[".
_ESCAPE = re.compile(r"--|(-?)\\(.)", re.DOTALL)
_ASCII_CLASSES = {"d": "[0-9]", "D": "[^0-9]", "w": "[A-Za-z0-9_]", "W": "[^A-Za-z0-9_]"}


class Constraints:
    """Makes grammars for one model. Thread-safe.

    Methods block for the compilation (see `GrammarChecker.check`), so call them from a thread.
    Each returns the text for `Sampling.grammar`, and raises `BadRequest`, with `param` naming the
    field of the request, for what cannot be compiled.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._checker = GrammarChecker(
            tokenizer.path, tokenizer.vocab_size, tokenizer.eos_token_ids
        )

    def close(self) -> None:
        """End the sandbox process."""
        self._checker.close()

    def json_schema(
        self,
        schema: Mapping[str, Any] | bool,
        strict: bool = False,
        *,
        param: str = "response_format.json_schema.schema",
    ) -> str:
        """Return the grammar of JSON that satisfies `schema`.

        Args:
            schema: JSON schema, draft 2020-12 or 7.
            strict: refuse keywords that cannot be enforced; otherwise they are ignored, as OpenAI
                defines it.
            param: the field that holds the schema.
        """
        text = _schema_text(schema, strict, param)
        return self._checked(f'{{"grammars":[{{"json_schema":{text}}}]}}', "the JSON schema", param)

    def json_object(self) -> str:
        """Return the grammar of any JSON object."""
        return self.json_schema({"type": "object"}, strict=True, param="response_format")

    def regex(self, pattern: str, *, param: str = "structured_outputs.regex") -> str:
        """Return the grammar of text that matches `pattern` from beginning to end.

        The syntax is that of Rust's `regex`: no look-around, no back-references. `\\d` and `\\w`
        are ASCII; `\\p{Nd}` and `\\p{L}` are the digits and letters of every script.
        """
        _cap(len(pattern), MAX_REGEX_CHARS, "characters", param)
        pattern = _ESCAPE.sub(_ascii, _unicode(pattern, param))
        grammar = LLMatcher.grammar_from_regex(pattern)
        return self._checked(grammar, "the regular expression", param)

    def choice(self, choices: Sequence[str], *, param: str = "structured_outputs.choice") -> str:
        """Return the grammar of exactly one of `choices`."""
        if not choices or not all(choices):
            raise BadRequest(
                f"{param!r} cannot be used",
                "it is empty" if not choices else "one of the choices is empty",
                "Name at least one choice, each with at least one character.",
                param=param,
            )
        _cap(len(choices), MAX_CHOICES, "choices", param)
        _cap(sum(map(len, choices)), MAX_CHOICE_CHARS, "characters", param)
        # One terminal, not one rule per choice: then the lexer holds them, as it does an enum.
        options = " | ".join(
            json.dumps(_unicode(choice, param), ensure_ascii=False) for choice in choices
        )
        return self._checked(f"start: CHOICE\nCHOICE: {options}\n", "the list of choices", param)

    def grammar(self, grammar: str, *, param: str = "structured_outputs.grammar") -> str:
        """Return the grammar that a user wrote, in Lark (as llguidance knows it) or GBNF."""
        _cap(len(grammar), MAX_GRAMMAR_CHARS, "characters", param)
        return self._checked(_unicode(grammar, param), "the grammar", param, gbnf=True)

    def lark(self, grammar: str, *, param: str = "structured_outputs.grammar") -> str:
        """Return the grammar that a user wrote in Lark, as llguidance knows it."""
        _cap(len(grammar), MAX_GRAMMAR_CHARS, "characters", param)
        return self._checked(_unicode(grammar, param), "the grammar", param)

    def tools(
        self,
        tools: Sequence[Mapping[str, Any]],
        tool_choice: str | Mapping[str, Any],
        parser: ToolParser,
        *,
        parallel: bool = True,
    ) -> str | None:
        """Return the grammar of an answer that obeys `tool_choice`; None if any answer does.

        Args:
            tools: in OpenAI's form, each with a function and its name.
            tool_choice: "none", "auto", "required", or an object that names a function. Under
                "auto", calls are constrained if a function is `strict`, as far as the model's form
                of calls allows it.
            parser: of the model.
            parallel: allow several calls; a named function is called once.
        """
        if tool_choice == "none":
            return None
        optional = tool_choice == "auto"
        if optional and not (any(map(_is_strict, tools)) and parser.call_grammar.can_follow_text):
            return None
        functions = [_function(tool, f"tools[{at}].function") for at, tool in enumerate(tools)]
        if isinstance(tool_choice, Mapping):
            name = tool_choice.get("function", {}).get("name")
            functions = [function for function in functions if function.name == name][:1]
            parallel = False
        if not functions:
            raise BadRequest(
                "'tool_choice' cannot be honoured",
                "the request has no such tool" if tools else "the request has no tools",
                "Name one of the functions in 'tools', or leave 'tool_choice' out.",
                param="tool_choice",
            )
        grammar = parser.grammar(functions, self._tokenizer, parallel=parallel, optional=optional)
        verdict = self._checker.check(grammar)
        if verdict.refusal is None:
            return verdict.grammar
        for at, tool in enumerate(tools):  # to name the one at fault
            schema = tool["function"].get("parameters") or {}
            where = f"tools[{at}].function.parameters"
            self.json_schema(schema, _is_strict(tool), param=where)
        raise _refused("the set of tools", verdict.refusal, "tools")

    def _checked(self, grammar: str, subject: str, param: str, *, gbnf: bool = False) -> str:
        verdict = self._checker.check(grammar, gbnf=gbnf)
        if verdict.refusal is not None:
            raise _refused(subject, verdict.refusal, param)
        return verdict.grammar


def _ascii(found: re.Match[str]) -> str:
    if found[2] not in _ASCII_CLASSES:
        return found[0]
    return (r"\-" if found[1] else "") + _ASCII_CLASSES[found[2]]


def _refused(subject: str, why: str, param: str) -> BadRequest:
    return BadRequest(
        f"{subject} in {param!r} cannot be used",
        why,
        "Correct it, or make it simpler: fewer alternatives, shorter repetitions, less nesting.",
        param=param,
    )


def _function(tool: Mapping[str, Any], where: str) -> Function:
    function = tool["function"]
    # Without parameters, OpenAI defines, a function takes none.
    schema = function.get("parameters") or {"type": "object", "additionalProperties": False}
    return Function(
        name=_unicode(function["name"], f"{where}.name"),
        schema=_schema_text(schema, _is_strict(tool), f"{where}.parameters"),
    )


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _schema_text(schema: Mapping[str, Any] | bool, strict: bool, param: str) -> str:
    """Return a schema as JSON, with the options that llguidance reads from it."""
    if schema is False:
        raise _refused("the JSON schema", "no text satisfies it", param)
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise BadRequest(
            f"{param!r} is not a JSON schema",
            f"it is of type {type(schema).__name__}",
            'Send an object such as {"type": "object", "properties": {...}}.',
            param=param,
        )
    if (depth := _depth(schema)) > MAX_SCHEMA_DEPTH:
        raise _too_large(param, f"it is nested {depth} levels deep", f"{MAX_SCHEMA_DEPTH} levels")
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    text = json.dumps({**schema, "x-guidance": options})
    _cap(len(text), MAX_SCHEMA_BYTES, "bytes", param)
    return text


def _depth(value: Any) -> int:
    """Return how deeply objects and lists are nested, without recursion."""
    depth, level = 0, [value]
    while level := [child for item in level for child in _children(item)]:
        depth += 1
    return depth


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _cap(size: int, limit: int, unit: str, param: str) -> None:
    if size > limit:
        raise _too_large(param, f"it has {size:,} {unit}", f"{limit:,} {unit}")


def _too_large(param: str, why: str, limit: str) -> BadRequest:
    return BadRequest(f"{param!r} is too large", why, f"Send at most {limit}.", param=param)


def _unicode(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{param!r} is not valid Unicode",
            "it holds half of a surrogate pair",
            "Send the whole character.",
            param=param,
        ) from error
    return text
