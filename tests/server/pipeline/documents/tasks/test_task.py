"""Prompts, their four modes, and templates that no text of a user's can change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.tasks import TASKS, Mode, parse, render
from turret_server.pipeline.documents.tasks.task import PLAIN_DIRECTIVE, Task
from turret_server.pipeline.documents.tasks.template import SKELETON, fill, template_problem

hold = settings(derandomize=True, deadline=None, max_examples=200)
DOCVQA = TASKS["docvqa"]


def test_the_method_is_the_papers_skeleton() -> None:
    prompt = render(DOCVQA, ["Total   5.00"], "How much?")
    assert prompt == (
        f"{DOCVQA.instruction}\nDocument:\nTotal   5.00\n\nQuestion: How much?\n\n"
        f"{DOCVQA.directive}\n\nAnswer:"
    )


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.SPACE])
def test_without_an_instruction_the_directive_is_plain(mode: Mode) -> None:
    assert render(DOCVQA, ["x"], "q", mode=mode) == (
        f"Document:\nx\n\nQuestion: q\n\n{PLAIN_DIRECTIVE}\n\nAnswer:"
    )


def test_modes_are_two_switches() -> None:
    assert [(mode.value, mode.has_layout, mode.has_instruction) for mode in Mode] == [
        ("plain", False, False),
        ("space", True, False),
        ("task_instruction", False, True),
        ("task_instruction_space", True, True),
    ]


def test_the_forms_that_parsers_need_are_asked_for_in_every_mode() -> None:
    assert "[confidence], [answer]" in render(
        TASKS["mp-docvqa-by-page"], ["x"], "q", mode=Mode.PLAIN
    )
    assert "JSON" in render(TASKS["key-values"], ["x"], "q", mode=Mode.PLAIN)
    assert "CSV" in render(TASKS["table-csv"], ["x"], "q", mode=Mode.PLAIN)


def test_the_scored_form_is_not_led_astray_by_a_cue() -> None:
    assert render(TASKS["mp-docvqa-by-page"], ["x"], "q").endswith("does not answer it.")


def test_several_pages_are_numbered() -> None:
    prompt = render(DOCVQA, ["first", "second"], "q")
    assert "Document:\n[Page 1]\nfirst\n\n[Page 2]\nsecond\n\nQuestion: q" in prompt


def test_labels_are_kept_when_pages_are_not() -> None:
    assert "[Page 7]\nx\n" in render(DOCVQA, ["x"], "q", labels=["Page 7"])


def test_a_question_of_the_tasks_own_is_asked_if_the_user_asks_none() -> None:
    assert "Question: What does the main table contain?" in render(TASKS["table-csv"], ["x"], " ")


def test_no_question_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"question is missing.*'docvqa'"):
        render(DOCVQA, ["x"], " \n")


NASTY = st.text(alphabet=st.sampled_from("{}\\n gdocument1$%0")) | st.sampled_from(
    ["{question}", "{document}", "{0}", "{", "}}", r"\g<1>", "%s", "{document.__class__}", "$0"]
)


@hold
@given(document=NASTY, question=NASTY.filter(str.strip))
def test_braces_in_document_and_question_are_text(document: str, question: str) -> None:
    prompt = render(DOCVQA, [document], question)
    before, after = SKELETON.split("{document}")
    before = before.replace("{instruction}", DOCVQA.instruction)
    assert prompt.startswith(before + document + "\n\nQuestion: " + question + "\n\n")
    assert len(prompt) == len(before) + len(document) + len(
        after.replace("{directive}", DOCVQA.directive).replace("{question}", "")
    ) + len(question)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (SKELETON, None),
        ('{"key": 1} {} {document} {a b} {question}', None),
        ("{document}", "{question} is missing"),
        ("{question}", "{document} must be there once"),
        ("{document}{document}{question}", "{document} must be there once"),
        ("{document}{question}{answer}", "{answer} is no placeholder"),
        ("{document}{question}{{total}}", "{total} is no placeholder"),
        ("{document}{question}{0}", "{0} is no placeholder"),
    ],
)
def test_templates_are_checked(template: str, problem: str | None) -> None:
    found = template_problem(template)
    assert found is None if problem is None else found is not None and problem in found


def test_an_empty_directive_takes_its_lines_along() -> None:
    values = {"instruction": "", "document": "", "question": "q", "directive": ""}
    assert fill(SKELETON, values) == "Document:\n\n\nQuestion: q\n\nAnswer:"
    assert fill("{document}{question}\n\n{directive}", values) == "q\n\n"


@pytest.mark.parametrize(
    ("template", "raw", "text"),
    [
        (SKELETON, " 42\n", "42"),
        (SKELETON, "Answer: 42", "42"),
        (SKELETON, "ANSWER:42", "42"),
        (SKELETON, "answer: Answer: 42", "Answer: 42"),
        (SKELETON, "The Answer: 42", "The Answer: 42"),
        (SKELETON, "Answer", "Answer"),
        (SKELETON, "", ""),
        ("{document} {question}\nAntwort:", "Antwort: 42", "42"),
        ("{document} {question}\nAntwort:", "Answer: 42", "42"),
        ("{document} {question}", "Answer: 42", "42"),
    ],
)
def test_the_echoed_cue_is_no_part_of_the_answer(template: str, raw: str, text: str) -> None:
    task = Task("mine", parser=TASKS["question"].parser, template=template)
    assert parse(task, raw).text == text


@hold
@given(raw=st.text())
@pytest.mark.parametrize("name", TASKS)
def test_no_reply_is_beyond_a_parser(name: str, raw: str) -> None:
    answer = parse(TASKS[name], raw)
    assert answer.confidence is None or 0 <= answer.confidence <= 100
