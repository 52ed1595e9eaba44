"""InfographicVQA (Mathew et al., 2022): passages of document or question, or a number."""

from turret_server.pipeline.documents.tasks.answers import span_answer
from turret_server.pipeline.documents.tasks.task import Task

INFOGRAPHIC_VQA = Task(
    name="infographic-vqa",
    parser=span_answer,
    instruction=(
        "The document is the text of an infographic. An answer takes one of four forms:\n"
        "- a passage of the document, copied exactly;\n"
        "- several passages of it, with a comma and a space between them and no 'and';\n"
        "- a passage of the question, such as one of the choices that it offers;\n"
        "- a number, also one to be found by counting, adding or comparing."
    ),
    directive="Answer the question from the document, in as few words as possible.",
)
