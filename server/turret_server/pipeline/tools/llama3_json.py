"""Llama 3.1 to 3.3: the answer is a call object, with or without `<|python_tag|>` before it."""

from turret_server.pipeline.tools.call_stream import CallFormat
from turret_server.pipeline.tools.parser import CallGrammar, ToolParser

PARSER = ToolParser(
    name="llama3_json",
    detect=lambda template: "<|python_tag|>" in template or '"parameters": ' in template,
    format=CallFormat(open="<|python_tag|>", bare=True, separators=";,", needs_arguments=True),
    # These models were trained to make one call per answer, and nothing marks it as one.
    call_grammar=CallGrammar(
        block="call", between_blocks=None, arguments_key="parameters", can_follow_text=False
    ),
)
