"""Chat messages to prompt tokens, through the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.conversation import normalise
from turret_server.pipeline.template import ChatTemplate
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.pipeline.tools import parser_for
from turret_server.pipeline.tools.parser import ToolParser
from turret_server.pipeline.tools.prompted import describe_tools, write_out_calls

# Set by the server; a request that could overwrite them could unsay who said what.
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})

# Marks where a continued message ends. The blank after it shows whether the template trims: then
# what it would have trimmed stands before the tag.
_END_TAG = "\ue000TURRET_CONTINUE\ue001"


class ChatPrompt:
    """Renders conversations for one model. Thread-safe.

    Args:
        tokenizer: of the model.
        template: Jinja source in place of the model's own; None uses the model's.

    Raises:
        StartupError: a template is not valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        self._tokenizer = tokenizer
        source = template if template is not None else tokenizer.chat_template
        self._template = ChatTemplate(source) if source is not None else None
        self._tool_template = self._template
        if source == tokenizer.chat_template and tokenizer.tool_template is not None:
            self._tool_template = ChatTemplate(tokenizer.tool_template)

    @property
    def tool_parser(self) -> ToolParser | None:
        """The parser for the calls that this model writes; None if its form is not known."""
        template = self._tool_template
        if template is None:
            return None
        return parser_for(template.source, knows_tools="tools" in template.variables)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the prompt of a conversation as token ids.

        Args:
            messages: in OpenAI's form, plain JSON values.
            tools: in OpenAI's form; a template that knows no tools gets them in the system message.
            add_generation_prompt: end with the head of an assistant message.
            continue_final_message: end inside the last message, for the model to go on with;
                needs `add_generation_prompt=False`.
            template_kwargs: further variables that the template reads (`enable_thinking`).

        Raises:
            BadRequest: the messages do not fit the template, or an argument does not.
            Unprocessable: the model has no chat template.
        """
        text = self.render_text(
            messages, tools, add_generation_prompt, continue_final_message, template_kwargs
        )
        # The template has written the special tokens that belong there.
        return self._tokenizer.encode(text, add_special_tokens=False)

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt as text; arguments and errors as for `render`."""
        template = self._tool_template if tools else self._template
        if template is None:
            raise Unprocessable(
                "this model cannot chat",
                "it has no chat template",
                "Use /v1/completions, or start the server with --chat-template FILE.",
                param="messages",
            )
        special = self._tokenizer.special_tokens
        kwargs = _checked_kwargs(template, template_kwargs or {}, special.keys())
        conversation = _fit_roles(normalise(messages), template)
        visible_tools = [_visible(tool) for tool in tools or ()]
        if "tool_calls" not in template.source:
            conversation = write_out_calls(conversation)
        if visible_tools and "tools" not in template.variables:
            conversation = describe_tools(conversation, visible_tools)
        if continue_final_message:
            _open_last(conversation, add_generation_prompt)

        text = template.render(
            {
                "documents": None,
                **special,
                **kwargs,
                "messages": conversation,
                "tools": visible_tools or None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_tag(text) if continue_final_message else text


def _checked_kwargs(
    template: ChatTemplate, kwargs: Mapping[str, Any], special: Set[str]
) -> Mapping[str, Any]:
    allowed = template.variables - _RESERVED - special
    for name in kwargs:
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise BadRequest(
                f"chat_template_kwargs: {name!r} is not supported",
                f"the chat template of this model reads: {known}",
                "Remove it, or use one of these names.",
                param=f"chat_template_kwargs.{name}",
            )
    return kwargs


def _fit_roles(messages: list[dict[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
    """Call OpenAI's newer `developer` what older templates call it: `system`."""
    if "developer" in template.source:
        return messages
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def _visible(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model should read of a tool: not `strict`, which speaks to the server."""
    out = {key: value for key, value in tool.items() if value is not None}
    if isinstance(function := out.get("function"), Mapping):
        out["function"] = {k: v for k, v in function.items() if v is not None and k != "strict"}
    return out


def _open_last(messages: list[dict[str, Any]], add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise BadRequest(
            "'continue_final_message' cannot be used here",
            "'add_generation_prompt' would begin a new message after the one to continue",
            "Set add_generation_prompt to false.",
            param="continue_final_message",
        )
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise BadRequest(
            "'continue_final_message' cannot be used here",
            "the last message has no content to continue",
            "Give it a string as content.",
            param="continue_final_message",
        )
    messages[-1] = {**messages[-1], "content": content + _END_TAG + " "}


def _cut_at_tag(text: str) -> str:
    head, tag, rest = text.rpartition(_END_TAG)
    if not tag:
        raise BadRequest(
            "'continue_final_message' cannot be used here",
            "the chat template leaves out or rewrites the last message",
            "Continue a message of another role, or use /v1/completions.",
            param="continue_final_message",
        )
    return head if rest.startswith(" ") else head.rstrip()
