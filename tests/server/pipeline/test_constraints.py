"""What users ask of an answer's form: compiled, or refused with a reason, and in time."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turret_server.engine.grammar import GrammarCompiler
from turret_server.errors import BadRequest
from turret_server.pipeline.constraints import Constraints
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.pipeline.tools import PARSERS
from turret_server.pipeline.tools.parser import MAX_CALLS

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add_person", "parameters": PERSON}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = '{"name": "add_person", "arguments": {"name": "Zoë", "age": 7}}'
NOW = '{"name": "now", "arguments": {}}'


@pytest.fixture(scope="module")
def constraints(demo_tokenizer):
    made = Constraints(demo_tokenizer)
    made.regex("warm")  # the first check starts the sandbox
    yield made
    made.close()


@pytest.fixture(scope="module")
def accepts(demo_tokenizer):
    """Whether a grammar takes a text as a complete answer."""
    compiler = GrammarCompiler(
        demo_tokenizer.path, demo_tokenizer.vocab_size, demo_tokenizer.eos_token_ids
    )

    def check(grammar: str, text: str, tokenizer: Tokenizer = demo_tokenizer) -> bool:
        matcher = compiler.matcher(grammar)
        ids = tokenizer.encode(text, add_special_tokens=False)
        return all(matcher.accept(i) for i in [*ids, *tokenizer.eos_token_ids[:1]])

    return check


def refusal(constrain, *args, **options) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        constrain(*args, **options)
    return caught.value


def test_a_schema_allows_its_instances_only(constraints, accepts):
    grammar = constraints.json_schema(PERSON, strict=True)
    for text in (
        '{"name": "Zoë", "age": 7}',
        '{"name":"","age":-1}',
        '{\n  "name": "a",\n  "age": 1\n}',
    ):
        assert accepts(grammar, text)
    for text in (
        '{"name": "Zoë"}',
        '{"name": 1, "age": 7}',
        '{"name": "a", "age": 1, "b": 2}',
        "[]",
    ):
        assert not accepts(grammar, text)


def test_blanks_are_bounded(constraints, accepts):
    """A small model can otherwise write blanks until its tokens are spent."""
    grammar = constraints.json_schema(PERSON)
    assert not accepts(grammar, '{"name":  "a", "age": 1}')
    assert not accepts(grammar, '{\n\n"name": "a", "age": 1}')


def test_any_object_is_an_object(constraints, accepts):
    grammar = constraints.json_object()
    assert accepts(grammar, '{"a": [1, {"b": null}]}')
    assert not accepts(grammar, "[1]")


def test_keywords_that_cannot_be_enforced_are_refused_only_when_strict(constraints, accepts):
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert accepts(constraints.json_schema(schema), "[1, 1]")
    error = refusal(constraints.json_schema, schema, strict=True)
    assert "uniqueItems" in error.why


def test_a_regular_expression_matches_the_whole_answer(constraints, accepts):
    grammar = constraints.regex(r"[A-Z]{2}/\d+\n?")
    assert accepts(grammar, "AB/12")
    assert accepts(grammar, "AB/12\n")
    assert not accepts(grammar, "AB/")
    assert not accepts(grammar, "xAB/12")


@pytest.mark.parametrize(
    ("pattern", "answers", "refused"),
    [
        (r"\d{2}", ["12"], ["١٢", "1a"]),
        (r"[\d.]+", ["1.2"], ["١.٢"]),
        (r"\w+", ["a_1"], ["é", "a-1"]),
        (r"[^\W]", ["a"], ["é", "-"]),
        (r"\D", ["١", "a"], ["1"]),
        (r"\\d", ["\\d"], ["\\1"]),
        (r"\p{Nd}", ["١", "1"], ["a"]),
    ],
)
def test_classes_of_a_regex_are_those_of_a_schema_s_pattern(
    constraints, accepts, pattern, answers, refused
):
    grammar = constraints.regex(pattern)
    schema = constraints.json_schema({"type": "string", "pattern": f"^{pattern}$"})
    for text in [*answers, *refused]:
        assert accepts(grammar, text) is (text in answers)
        assert accepts(schema, json.dumps(text, ensure_ascii=False)) is (text in answers)


@pytest.mark.parametrize(
    ("pattern", "answers", "refused"),
    [
        (r"\d{2}-\d", ["12-3"], ["12[3", "1-3"]),
        (r"[+-\d]", ["+", "-", "5"], ["A", ",", "+]"]),
        (r"[\w-]", ["a", "-"], ["é", "+"]),
        (r"[\w--\d]", ["a", "_"], ["1", "-"]),
    ],
)
def test_a_dash_beside_a_class_is_no_range(constraints, accepts, pattern, answers, refused):
    grammar = constraints.regex(pattern)
    for text in [*answers, *refused]:
        assert accepts(grammar, text) is (text in answers), text


def test_a_choice_is_one_of_its_strings(constraints, accepts):
    choices = ["yes", "yes, but", 'n"o\n', "ä\\"]
    grammar = constraints.choice(choices)
    assert all(accepts(grammar, choice) for choice in choices)
    assert not accepts(grammar, "ye")
    assert not accepts(grammar, "no")


@pytest.mark.parametrize(
    "grammar", ["start: NUM\nNUM: /[0-9]+/", 'root ::= digit+\ndigit ::= [0-9] | "x"']
)
def test_lark_and_gbnf_are_both_understood(constraints, accepts, grammar):
    compiled = constraints.grammar(grammar)
    assert accepts(compiled, "123")
    assert not accepts(compiled, "12a")


@pytest.mark.parametrize(
    ("method", "argument", "why"),
    [
        ("json_schema", {"type": "strin"}, "strin"),
        ("json_schema", {"properties": 5}, "properties"),
        ("json_schema", {"$ref": "#/nowhere"}, "nowhere"),
        ("json_schema", {"$ref": "https://example.com/s.json"}, "does not fetch"),
        ("json_schema", {"enum": []}, "Unsatisfiable"),
        ("json_schema", {"$ref": "#"}, "no text satisfies it"),
        ("json_schema", False, "no text satisfies it"),
        ("json_schema", [], "of type list"),
        ("json_schema", {"title": "\ud800"}, "hex escape"),
        ("json_schema", {"minimum": float("nan")}, "expected value"),
        ("json_schema", {"type": "integer", "minimum": -(10**400)}, "out of range"),
        ("json_schema", {"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", "(", "unclosed group"),
        ("regex", "a\ud800", "surrogate"),
        ("choice", [], "empty"),
        ("choice", ["a", ""], "empty"),
        ("choice", ["\udc00"], "surrogate"),
        ("grammar", "start: nothing", "unknown name"),
        ("grammar", "nonsense", "neither Lark nor GBNF"),
        ("grammar", 'root ::= "\\', "neither Lark nor GBNF"),
        ("grammar", "root ::= " + "(" * 10_000, "neither Lark nor GBNF"),
        ("grammar", "root ::= a\ud800", "surrogate"),
        ("lark", "start: <|nope|>", "unknown special token"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(constraints, method, argument, why):
    error = refusal(getattr(constraints, method), argument, param="here.there")
    assert why in error.why
    assert error.param == "here.there"
    assert error.what
    assert error.fix


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema]}
    return schema


def crossed(keyword: str, times: int) -> dict:
    """Alternatives to be combined with each other: 2**times of them."""
    pairs = [
        [
            {"properties": {f"{side}{i}": {"type": kind}}}
            for side, kind in (("a", "string"), ("b", "null"))
        ]
        for i in range(times)
    ]
    return {"allOf": [{keyword: pair, "type": "object"} for pair in pairs]}


# What takes other libraries minutes or all memory, and three that keep llguidance itself busy.
HOSTILE = {
    "anyOf 1,000 deep": ("json_schema", deep(1_000)),
    "anyOf 20,000 deep": ("json_schema", deep(20_000)),
    "enum of 5,000": ("json_schema", {"enum": [f"value {i}" for i in range(5_000)]}),
    "maxLength": ("json_schema", {"type": "string", "maxLength": 100_000}),
    "minItems": ("json_schema", {"type": "array", "items": {"type": "null"}, "minItems": 10_000}),
    "200 optional": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}},
    ),
    "5,000 optional": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}},
    ),
    "crossed anyOf": ("json_schema", crossed("anyOf", 24)),
    "crossed oneOf": ("json_schema", crossed("oneOf", 24)),
    "intersected patterns": (
        "json_schema",
        {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(10, 40)]},
    ),
    "large schema": ("json_schema", {"enum": ["x" * 1_000 + str(i) for i in range(1_000)]}),
    "nested repetition": ("regex", "((a{1,200}){1,200}){1,200}"),
    "more of it": ("regex", "(((((x{1,50}){1,50}){1,50}){1,50}){1,50}){1,50}"),
    "many words": ("regex", "|".join(f"word{i}[a-z]*" for i in range(1_000))),
    "parentheses": ("regex", "(" * 8_000 + "a" + ")" * 8_000),
    "unicode": ("regex", r"(\p{L}{1,100}\w{1,100}){1,100}"),
    "rules that double": (
        "grammar",
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"',
    ),
    "terminals that double": (
        "grammar",
        "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"',
    ),
    "intersected terminals": (
        "grammar",
        "start: T\nT: " + " & ".join(f"/(.*a.{{{i}}}b.*)/" for i in range(5, 40)),
    ),
    "gbnf references": (
        "grammar",
        "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(3_000)) + '\nr3000 ::= "x"',
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_are_compiled_or_refused_in_time(constraints, name):
    method, argument = HOSTILE[name]
    began = time.monotonic()
    try:
        getattr(constraints, method)(argument)
    except BadRequest as error:
        refused = error.why
    else:
        refused = ""
    # 100 ms of processor time, and what a machine with other work makes of it; never a hang.
    assert time.monotonic() - began < 10
    assert "failed" not in refused


KEYWORDS = ["type", "properties", "items", "required", "enum", "const", "anyOf", "allOf", "oneOf"]
KEYWORDS += ["pattern", "format", "minimum", "maxLength", "minItems", "additionalProperties"]
KEYWORDS += ["$ref", "$defs", "not", "if", "then", "patternProperties", "x-guidance", "$schema"]
WORDS = ["object", "string", "integer", "array", "null", "#", "#/$defs/a", "date", "a", "^a+$", "["]
schemas = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYWORDS, "a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(schema=schemas, strict=st.booleans())
def test_any_schema_is_compiled_or_refused(constraints, schema, strict):
    try:
        grammar = constraints.json_schema(schema, strict)
    except BadRequest as error:
        assert error.why  # noqa: PT017
    else:
        assert grammar


def test_a_verdict_is_remembered(constraints, monkeypatch):
    schema = {"type": "object", "properties": {"remembered": {"type": "string"}}}
    grammar = constraints.json_schema(schema)
    monkeypatch.setattr(constraints._checker, "_ask", lambda _: pytest.fail("asked again"))
    assert constraints.json_schema(schema) == grammar


class TestTools:
    """`tool_choice`, honoured by what the model can write at all."""

    @pytest.mark.parametrize(
        ("parser", "one", "two", "wrong"),
        [
            (
                "hermes",
                f"<tool_call>\n{CALL}\n</tool_call>",
                f"<tool_call>\n{NOW}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
                "<tool_call>\n" + NOW.replace("now", "later") + "\n</tool_call>",
            ),
            (
                "mistral",
                f"[TOOL_CALLS] [{CALL}]",
                f"[TOOL_CALLS][{NOW}, {CALL}]",
                "[TOOL_CALLS] []",
            ),
            ("llama3_json", CALL.replace("arguments", "parameters"), None, NOW),
        ],
    )
    def test_required_means_calls_and_nothing_else(
        self, constraints, accepts, parser, one, two, wrong
    ):
        grammar = constraints.tools(TOOLS, "required", PARSERS[parser])
        assert accepts(grammar, one)
        assert two is None or accepts(grammar, two)
        for text in (wrong, "Hello", one + "!", one.replace("7", '"x"')):
            assert not accepts(grammar, text)
        assert PARSERS[parser].parse(one)[1][0].name == "add_person"
        single = constraints.tools(TOOLS, "required", PARSERS[parser], parallel=False)
        assert accepts(single, one)
        assert two is None or not accepts(single, two)

    def test_a_named_function_is_called_once(self, constraints, accepts):
        choice = {"type": "function", "function": {"name": "now"}}
        grammar = constraints.tools(TOOLS, choice, PARSERS["hermes"])
        block = f"<tool_call>\n{NOW}\n</tool_call>"
        assert accepts(grammar, block)
        assert not accepts(grammar, f"{block}\n{block}")
        assert not accepts(grammar, f"<tool_call>\n{CALL}\n</tool_call>")

    def test_calls_are_bounded(self, constraints, accepts):
        grammar = constraints.tools(TOOLS, "required", PARSERS["hermes"])
        block = f"<tool_call>\n{NOW}\n</tool_call>"
        assert accepts(grammar, "\n".join([block] * MAX_CALLS))
        assert not accepts(grammar, "\n".join([block] * (MAX_CALLS + 1)))

    @pytest.mark.parametrize("choice", ["none", "auto"])
    def test_nothing_is_constrained_without_need(self, constraints, choice):
        assert constraints.tools(TOOLS, choice, PARSERS["hermes"]) is None

    @pytest.mark.parametrize(
        ("parser", "block"),
        [("hermes", f"<tool_call>\n{CALL}\n</tool_call>"), ("mistral", f"[TOOL_CALLS] [{CALL}]")],
    )
    def test_a_strict_function_constrains_calls_but_not_text(
        self, constraints, accepts, parser, block
    ):
        strict = [
            {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}},
            TOOLS[1],
        ]
        grammar = constraints.tools(strict, "auto", PARSERS[parser])
        for text in ("", "Hello <b> [x]\n", block, f"Wait.\n{block} Done."):
            assert accepts(grammar, text)
        for text in (block.replace("7", '"x"'), block.replace("add_person", "nobody"), block[:-3]):
            assert not accepts(grammar, text)

    def test_llama_calls_cannot_be_told_from_text_in_time(self, constraints):
        strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
        assert constraints.tools(strict, "auto", PARSERS["llama3_json"]) is None

    def test_markers_that_are_tokens_are_written_as_tokens(self, tokenizers):
        tokenizer = tokenizers["byte_level"]
        made = Constraints(tokenizer)
        compiler = GrammarCompiler(tokenizer.path, tokenizer.vocab_size, tokenizer.eos_token_ids)
        try:
            grammar = made.tools(TOOLS, "required", PARSERS["mistral"])
        finally:
            made.close()
        marker = tokenizer.token_id("[TOOL_CALLS]")
        assert compiler.matcher(grammar).accept(marker)
        assert not compiler.matcher(grammar).accept(tokenizer.token_id("["))

    @pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "nope"}}, {}])
    def test_an_unknown_function_cannot_be_chosen(self, constraints, choice):
        error = refusal(constraints.tools, TOOLS, choice, PARSERS["hermes"])
        assert error.param == "tool_choice"

    def test_no_tools_cannot_be_required(self, constraints):
        assert refusal(constraints.tools, [], "required", PARSERS["hermes"]).param == "tool_choice"

    def test_the_tool_at_fault_is_named(self, constraints):
        bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}
        error = refusal(constraints.tools, [*TOOLS, bad], "required", PARSERS["hermes"])
        assert error.param == "tools[2].function.parameters"

    def test_names_are_quoted(self, constraints, accepts):
        name = 'ä"\\ %json {'
        tools = [{"type": "function", "function": {"name": name}}]
        grammar = constraints.tools(tools, "required", PARSERS["hermes"])
        call = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False)
        assert accepts(grammar, f"<tool_call>\n{call}\n</tool_call>")
