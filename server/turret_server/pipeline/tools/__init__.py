"""Tool calls: one parser per family of models."""

from turret_server.pipeline.tools import hermes, llama3_json, mistral
from turret_server.pipeline.tools.parser import ToolParser

# In the order in which they are asked; the marks of the last are the least distinct.
PARSERS: dict[str, ToolParser] = {
    parser.name: parser for parser in (mistral.PARSER, hermes.PARSER, llama3_json.PARSER)
}


def parser_for(template: str, *, knows_tools: bool) -> ToolParser | None:
    """Return the parser for a model, by its chat template.

    Args:
        template: the Jinja source.
        knows_tools: whether the template writes tools. Where it does not, they are described in
            the form of Hermes (`prompted`), and the model answers in it.

    Returns:
        None where the template writes tools in a form that no parser knows.
    """
    if not knows_tools:
        return PARSERS["hermes"]
    return next((p for p in PARSERS.values() if p.detect(template)), None)
