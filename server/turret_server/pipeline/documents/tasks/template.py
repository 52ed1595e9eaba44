"""Prompt templates: fixed text around `{document}` and `{question}`.

A template is filled in one pass and values are not looked at again, so a document or a question may
contain braces of any kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PLACEHOLDERS = ("instruction", "document", "question", "directive")

# As in LATIN-Prompt (Wang et al., 2023).
SKELETON = """\
{instruction}
Document:
{document}

Question: {question}

{directive}

Answer:"""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# A line of its own, and the blank lines after it.
_OPTIONAL_LINE = re.compile(r"^\{(instruction|directive)\}(?:\n+|\Z)", re.MULTILINE)


def template_problem(template: str) -> str | None:
    """Say why a template can't be used; None when it can.

    Braces around one word are a placeholder; any other brace is text.
    """
    found = _PLACEHOLDER.findall(template)
    if unknown := [name for name in found if name not in PLACEHOLDERS]:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        return f"{{{unknown[0]}}} is no placeholder; there are {known}"
    if found.count("document") != 1:
        return "{document} must be there once"
    if "question" not in found:
        return "{question} is missing"
    return None


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the places of their names.

    Args:
        template: one without a problem.
        values: of every placeholder. An instruction or directive that is empty takes its line, and
            the blank lines after it, along.
    """
    kept = _OPTIONAL_LINE.sub(lambda match: match[0] if values[match[1]] else "", template)
    return _PLACEHOLDER.sub(lambda match: values[match[1]], kept)


def cue(template: str) -> str:
    """Return the words that end a template, such as "Answer:"; empty if a placeholder ends it."""
    last = template.rstrip().rpartition("\n")[2].strip()
    return "" if _PLACEHOLDER.search(last) else last
