"""What models write as calls, whole and streamed, well and badly."""

import json
import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.tools import PARSERS
from turret_server.pipeline.tools.calls import ContentDelta
from turret_server.pipeline.tools.parser import ToolParser

hold = settings(derandomize=True, deadline=None, max_examples=100)

# (answer, content, [(name, arguments)])
WELL_FORMED = {
    "hermes": [
        ("Hello", "Hello", []),
        (" \n", " \n", []),
        ("a < b <tool <tool_call", "a < b <tool <tool_call", []),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            None,
            [("f", '{"a": 1}')],
        ),
        (
            'Go.\n<tool_call>{"arguments": {"a": [1, {"b": "}]\\""}]}, "name": "f"}</tool_call>\n'
            '\n<tool_call>{"name":"g"}</tool_call> Done.',
            "Go.\nDone.",
            [("f", '{"a": [1, {"b": "}]\\""}]}'), ("g", "{}")],
        ),
        (
            '<tool_call>[{"name": "f", "arguments": {}}, {"name":"g","arguments":{}}]</tool_call>',
            None,
            [("f", "{}"), ("g", "{}")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            None,
            [("f", '{"a": 1}')],
        ),
        ('<tool_call>{"name": "f", "arguments": "{a"}</tool_call>', None, [("f", '"{a"')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', None, [("f", '{"a": 1}')]),
        (
            '<tool_call>{"name": "é\\u0301", "arguments": null}</tool_call>',
            None,
            [("é\u0301", "null")],
        ),
    ],
    "llama3_json": [
        ("Hello {", "Hello {", []),
        ('{"name": "f", "parameters": {"a": 1}}', None, [("f", '{"a": 1}')]),
        (
            '\n {"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": "x"}}',
            None,
            [("f", "{}"), ("g", '{"b": "x"}')],
        ),
        (
            '{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}',
            None,
            [("f", "{}"), ("g", "{}")],
        ),
        (
            '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}',
            None,
            [("f", '{"a": 1}')],
        ),
        ('{"name": "Alice", "age": 3}', '{"name": "Alice", "age": 3}', []),
        ('See {"name": "f", "parameters": {}}', 'See {"name": "f", "parameters": {}}', []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ],
    "mistral": [
        ("Hello", "Hello", []),
        (
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
            None,
            [("f", '{"a": 1}'), ("g", "{}")],
        ),
        (
            'Yes[TOOL_CALLS][{"name": "f", "arguments": {"a": "]"}}] ok',
            "Yes\nok",
            [("f", '{"a": "]"}')],
        ),
        ("[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
        ("[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    ],
}
CASES = [(name, *case) for name, cases in WELL_FORMED.items() for case in cases]

MALFORMED = [
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call>nope</tool_call>"),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call> x'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f" "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "name": "g"}</tool_call>'),
    ("hermes", "<tool_call>{" + '"name": "' + "f" * 300 + '"}</tool_call>'),
    ("llama3_json", "{}"),
    ("llama3_json", '{"name": "f"}'),
    ("llama3_json", '{"a": {"name": "f", "parameters": {}}'),
    ("mistral", '[TOOL_CALLS] [{"name"]'),
]
# Wrong only after the call has begun: whole answers keep them as content, streams have sent them.
LATE = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>', '{"a": tru}'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', '{"a": NaN}'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a', '{"a'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, x}</tool_call>', "{}x}"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}"}</tool_call>', '{}"}'),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a"', '{"a"'),
]


def fold(deltas) -> tuple[str | None, list[tuple[str, str]]]:
    """Put streamed pieces together, and check their form on the way."""
    content, calls = "", []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            assert delta.text
            content += delta.text
        elif delta.name is not None:
            assert delta.id
            assert (delta.index, delta.arguments) == (len(calls), "")
            calls.append((delta.name, ""))
        else:
            assert delta.id is None
            assert delta.index == len(calls) - 1
            assert delta.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content or None, calls


def whole(parser: ToolParser, answer: str) -> tuple[str | None, list[tuple[str, str]]]:
    content, calls = parser.parse(answer)
    return content, [(call.name, call.arguments) for call in calls]


def streamed(parser: ToolParser, answer: str, cuts: list[int]) -> tuple:
    stream, ends = parser.stream(), sorted({*cuts, 0, len(answer)})
    deltas = [d for a, b in pairwise(ends) for d in stream.push(answer[a:b])]
    return fold([*deltas, *stream.finish()])


@pytest.mark.parametrize(("name", "answer", "content", "calls"), CASES)
def test_calls_are_told_from_content(name, answer, content, calls):
    assert whole(PARSERS[name], answer) == (content, calls)


@pytest.mark.parametrize(("name", "answer", "content", "calls"), CASES)
def test_a_stream_gives_the_same_however_it_is_cut(name, answer, content, calls):
    choose = random.Random(0)
    every = list(range(len(answer)))
    for cuts in [[], every, *(choose.sample(every, k=len(every) // 3) for _ in range(20))]:
        assert streamed(PARSERS[name], answer, cuts) == (content, calls)


@pytest.mark.parametrize(("name", "answer"), MALFORMED)
def test_what_is_no_call_is_content_unchanged(name, answer):
    assert whole(PARSERS[name], answer) == (answer, [])
    assert streamed(PARSERS[name], answer, list(range(len(answer)))) == (answer, [])


@pytest.mark.parametrize(("name", "answer", "arguments"), LATE)
def test_what_goes_wrong_late_is_content_when_whole_and_arguments_when_streamed(
    name, answer, arguments
):
    assert whole(PARSERS[name], answer) == (answer, [])
    for cuts in ([], list(range(len(answer)))):
        assert streamed(PARSERS[name], answer, cuts) == (None, [("f", arguments)])


def test_the_name_comes_first_and_arguments_in_pieces():
    stream = PARSERS["hermes"].stream()
    seen = [
        stream.push(part) for part in ('<tool_call>{"name": "f", ', '"arguments": {"a": ', "1}")
    ]
    assert seen[0] == []
    assert [d.name for d in seen[1]] == ["f", None]
    assert [d.arguments for d in (*seen[1], *seen[2])] == ["", '{"a": ', "1}"]


def test_content_is_not_held_longer_than_needed():
    stream = PARSERS["hermes"].stream()
    assert stream.push("Hello <tool") == [ContentDelta("Hello")]
    assert stream.push("s are") == [ContentDelta(" <tools are")]


def test_ids_are_fresh_and_mistral_s_have_nine_characters():
    answer = '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'
    first, second = PARSERS["mistral"].parse(answer)[1]
    assert first.id != second.id
    assert len(first.id) == len(second.id) == 9
    (call,) = PARSERS["llama3_json"].parse('{"name": "f", "parameters": {}}')[1]
    assert call.id.startswith("call_")


names = st.text(min_size=1, max_size=20)
arguments = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
    max_size=4,
)


@hold
@given(
    name=st.sampled_from(sorted(PARSERS)),
    calls=st.lists(st.tuples(names, arguments), min_size=1, max_size=3),
    ascii_only=st.booleans(),
    data=st.data(),
)
def test_any_valid_calls_are_found(name, calls, ascii_only, data):
    key = "parameters" if name == "llama3_json" else "arguments"
    objects = [json.dumps({"name": n, key: a}, ensure_ascii=ascii_only) for n, a in calls]
    answer = {
        "hermes": "\n".join(f"<tool_call>\n{o}\n</tool_call>" for o in objects),
        "llama3_json": "; ".join(objects),
        "mistral": "[TOOL_CALLS] [" + ", ".join(objects) + "]",
    }[name]
    wanted = (None, [(n, json.dumps(a, ensure_ascii=ascii_only)) for n, a in calls])
    assert whole(PARSERS[name], answer) == wanted
    cuts = data.draw(st.lists(st.integers(0, len(answer)), max_size=10))
    assert streamed(PARSERS[name], answer, cuts) == wanted


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    '{"name": "f"',
    ', "arguments": ',
]
PIECES += [', "parameters": ', "{", "}", "[", "]", '"', ",", ":", "\\", " ", "\n", "a", "1", ";"]


@hold
@given(
    name=st.sampled_from(sorted(PARSERS)),
    parts=st.lists(st.sampled_from(PIECES), max_size=25),
    data=st.data(),
)
def test_any_answer_is_read_the_same_however_it_is_cut(name, parts, data):
    answer = "".join(parts)
    parser = PARSERS[name]
    content, calls = parser.parse(answer)
    for call in calls:
        json.loads(call.arguments)
    if not calls:
        assert content == (answer or None)
    cuts = data.draw(st.lists(st.integers(0, len(answer)), max_size=10))
    assert streamed(parser, answer, cuts) == streamed(parser, answer, [])


def test_deep_nesting_is_content_and_takes_no_stack():
    answer = '<tool_call>{"name": "f", "arguments": ' + "[" * 200_000 + "]" * 200_000 + "}"
    assert whole(PARSERS["hermes"], answer) == (answer, [])


@pytest.mark.parametrize(
    "answer",
    [
        " " * 300_000,
        "<tool_call>" + " " * 300_000,
        '<tool_call>{"name": "f"}' + " " * 300_000,
        '<tool_call>{"name": "f"}</tool_call>' * 1_500,
        "<tool_call>" * 10_000,
        '<tool_call>{"name": "' + "f" * 300_000,
        '<tool_call>{"name": "f", "arguments": {"a": "' + '\\"' * 100_000,
    ],
    ids=[
        "blanks",
        "blanks in a block",
        "blanks after a call",
        "calls",
        "markers",
        "name",
        "string",
    ],
)
def test_long_answers_take_no_longer_than_their_length_explains(answer):
    began = time.monotonic()
    PARSERS["hermes"].parse(answer)
    stream = PARSERS["hermes"].stream()
    for at in range(0, len(answer), 8):
        stream.push(answer[at : at + 8])
    stream.finish()
    assert time.monotonic() - began < 10  # a second; quadratic work would take minutes
