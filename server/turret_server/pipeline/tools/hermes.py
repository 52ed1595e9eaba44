"""Hermes, Qwen2.5, Qwen3 and models without a form of their own: JSON in `<tool_call>` tags."""

from turret_server.pipeline.tools.call_stream import CallFormat
from turret_server.pipeline.tools.parser import CallGrammar, ToolParser

PARSER = ToolParser(
    name="hermes",
    # Qwen3-Coder writes `<function=name>` inside of the tags, another form.
    detect=lambda template: "<tool_call>" in template and "<function=" not in template,
    format=CallFormat(open="<tool_call>", close="</tool_call>"),
    call_grammar=CallGrammar(
        block=r'open "\n" call "\n" close',
        between_blocks=r'"\n"',
        arguments_key="arguments",
        can_follow_text=True,
    ),
)
