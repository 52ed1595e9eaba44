"""MP-DocVQA (Tito et al., 2023): the pages of a document, all at once or each by itself."""

from turret_server.pipeline.documents.tasks.answers import span_answer
from turret_server.pipeline.documents.tasks.confidence import scored_answer
from turret_server.pipeline.documents.tasks.docvqa import DIRECTIVE
from turret_server.pipeline.documents.tasks.task import Task
from turret_server.pipeline.documents.tasks.template import SKELETON

_FORM = (
    "Reply in one line of the form [confidence], [answer]: first a whole number from 0 to 100 "
    "that says how sure you are that this page answers the question, then a comma, then the "
    "answer. The confidence is 0 if the page does not answer it."
)

MP_DOCVQA = Task(
    name="mp-docvqa",
    parser=span_answer,
    instruction=(
        "The document is the text of scanned pages, each under its number, and the question was "
        "asked about the scans. Its answer is a short passage of one page: words that follow each "
        "other there, copied exactly."
    ),
    directive=DIRECTIVE,
)

MP_DOCVQA_BY_PAGE = Task(
    name="mp-docvqa-by-page",
    parser=scored_answer,
    instruction=(
        "The document is the text of one page of several, and the question was asked about all of "
        "them. If this page answers it, the answer is a short passage of it: words that follow "
        "each other there, copied exactly."
    ),
    directive=f"{DIRECTIVE} {_FORM}",
    plain=_FORM,
    # The form begins with the confidence, so that "Answer:" would mislead.
    template=SKELETON.removesuffix("\n\nAnswer:"),
    by_page=True,
)
