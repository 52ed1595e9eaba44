"""DocVQA (Mathew et al., 2021): a passage of one page, verbatim."""

from turret_server.pipeline.documents.tasks.answers import span_answer
from turret_server.pipeline.documents.tasks.task import Task

DIRECTIVE = "Copy the answer to the question from the document, in as few words as possible."

DOCVQA = Task(
    name="docvqa",
    parser=span_answer,
    instruction=(
        "The document is the text of a scanned page, and the question was asked about the scan. "
        "Its answer is a short passage of the document: words that follow each other there, "
        "copied exactly."
    ),
    directive=DIRECTIVE,
)
