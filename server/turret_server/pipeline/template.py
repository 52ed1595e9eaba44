"""A model's Jinja chat template: sandboxed, as transformers runs it, with a time and a size cap.

A template comes with the model or from the operator, never from a request. It is still code that
somebody else wrote and that runs over the user's text, so it can reach nothing (CVE-2026-5760 was
a plain Jinja environment), and neither its loops nor its output are unbounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from turret_server.errors import BadRequest, StartupError

MAX_CHARS = 4_000_000
MAX_SECONDS = 2.0

_deadline: ContextVar[float] = ContextVar("template_deadline")


class _TooSlow(Exception):
    """The template ran past its deadline."""


def _check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise _TooSlow


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is all of it."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to `{% endgeneration %}`; the body has a scope of its own, as elsewhere."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a look at the clock in every call and every turn of a loop."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _tojson
        self.filters["_metered"] = _metered
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]  # makes text of any length in one call

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the template's, as the sandbox does."""
        _check_time()
        return super().call(context, obj, *args, **kwargs)


@pass_context  # also keeps the compiler from running it on constant lists
def _metered(_: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check_time()
        yield item


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes <, > and & for HTML; a model should read what the user wrote.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the Jinja text.
        variables: the names it reads from its context.

    Raises:
        StartupError: the template is not valid Jinja.
    """

    def __init__(self, source: str):
        self.source = source
        environment = _Environment()
        try:
            tree = environment.parse(source)
            self.variables = frozenset(
                meta.find_undeclared_variables(tree) - environment.globals.keys()
            )
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(
                    loop.iter, "_metered", [], [], None, None, lineno=loop.lineno
                )
            code = environment.compile(tree)
        except (TemplateError, RecursionError) as error:
            raise StartupError(
                "the chat template cannot be used",
                str(error) or type(error).__name__,
                "Correct the Jinja source, or name another template.",
            ) from error
        self._template = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )

    def render(self, context: Mapping[str, Any]) -> str:
        """Return the text for `context`, whose values are plain JSON.

        Raises:
            BadRequest: the template refuses the messages, or they make it too slow or too long.
        """
        token = _deadline.set(time.monotonic() + MAX_SECONDS)
        try:
            return self._render(context)
        except BadRequest:
            raise
        except _TooSlow:
            raise BadRequest(
                "the chat template did not finish",
                f"rendering these messages takes longer than {MAX_SECONDS:g} s",
                "Send fewer or shorter messages.",
                param="messages",
            ) from None
        except Exception as error:  # template code may raise anything
            raise BadRequest(
                "the chat template of this model refuses the messages",
                str(error) or type(error).__name__,
                "Send roles and contents in the form and order that the model was trained on.",
                param="messages",
            ) from error
        finally:
            _deadline.reset(token)

    def _render(self, context: Mapping[str, Any]) -> str:
        parts, length = [], 0
        for part in self._template.generate(context):
            length += len(part)
            if length > MAX_CHARS:
                raise BadRequest(
                    "the prompt is too long",
                    f"the chat template made more than {MAX_CHARS:,} characters of it",
                    "Send fewer or shorter messages.",
                    param="messages",
                )
            parts.append(part)
        return "".join(parts)
