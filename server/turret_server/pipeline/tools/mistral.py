"""Mistral up to tokenizer v7: `[TOOL_CALLS]` and a JSON list of calls."""

from turret_server.pipeline.tools.call_stream import CallFormat
from turret_server.pipeline.tools.parser import CallGrammar, ToolParser

PARSER = ToolParser(
    name="mistral",
    # Later templates write `[TOOL_CALLS]name[ARGS]{...}`, another form.
    detect=lambda template: "[TOOL_CALLS]" in template and "[ARGS]" not in template,
    format=CallFormat(open="[TOOL_CALLS]", short_ids=True),
    call_grammar=CallGrammar(
        block='open " "? "[" calls "]"',
        between_blocks=None,
        arguments_key="arguments",
        can_follow_text=True,
    ),
)
