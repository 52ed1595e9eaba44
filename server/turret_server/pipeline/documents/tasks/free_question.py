"""A question of any kind, answered in the model's own words."""

from turret_server.pipeline.documents.tasks.answers import text_answer
from turret_server.pipeline.documents.tasks.task import Task

FREE_QUESTION = Task(
    name="question",
    parser=text_answer,
    instruction=(
        "The document is the text of one or more pages. What it does not say, you do not know."
    ),
    directive="Answer the question from the document. If it does not tell, say so.",
    plain="Answer the question from the document.",
)
