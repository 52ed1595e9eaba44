import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_adapters.peft.patterns import Budget, Pattern, PatternError

PATHS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.gate_proj",
    "language_model.model.layers.3.mlp.down_proj",
    "model.embed_tokens",
    "lm_head",
    "",
]
# Target expressions as published adapters write them.
PATTERNS = [
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.[0-9]+\.(self_attn|mlp)\.[a-z]+_proj",
    r"^(?!.*visual).*(?:q_proj|k_proj|gate_proj)$",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|gate_proj)))",
    r".*(?=proj)proj",
    r"(.*\.)?([^.]+_proj)$",
    r"\w+(\.\w+){2,4}",
    r"model\..{10,30}?",
    r"\S*[^\d\W]",
    r"",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("path", PATHS)
def test_published_patterns_match_as_re_does(pattern, path):
    assert Pattern(pattern, Budget()).fullmatch(path) == bool(re.fullmatch(pattern, path))


ATOMS = st.sampled_from(
    ["a", "b", ".", "\\d", "\\w", "\\b", "[ab]", "[^a]", "[0-9_]", "^", "$", "1"]
)
REPEATS = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{,3}?"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda x: f"(?:{x[0]}|{x[1]})"),
        st.tuples(inner, REPEATS).map(lambda x: f"({x[0]}){x[1]}"),
        inner.map(lambda x: f"(?={x})"),
        inner.map(lambda x: f"(?!{x})"),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(EXPRESSIONS, st.text("ab1_.\n", max_size=8))
def test_random_patterns_match_as_re_does(pattern, text):
    assert Pattern(pattern, Budget()).fullmatch(text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    "pattern",
    ["(a", "a{5,2}", "*", "(?i)a", "a" * 5000, "(" * 3000, r"(?P<x>a)(?P<x>b)"],
    ids=lambda p: p[:20],
)
def test_what_is_refused_at_once(pattern):
    with pytest.raises(PatternError):
        Pattern(pattern, Budget())


@pytest.mark.parametrize(
    "pattern", ["(?i:a).*", r"(a)\1", r"(?<=a)b", r"(?>a)", r"a++", r"(a)?(?(1)b|c)"]
)
def test_what_is_refused_when_it_is_reached(pattern):
    with pytest.raises(PatternError, match=r"uses|sets flags"):
        Pattern(pattern, Budget()).fullmatch("aab")


def test_catastrophic_patterns_are_cheap():
    budget = Budget(steps=20_000)
    assert not Pattern(r"(a+)+$", budget).fullmatch("a" * 60 + "!")
    assert not Pattern(r"(.*a){30}", budget).fullmatch("a" * 25)


def test_huge_counts_end():
    assert Pattern(r"((a?){60000}){60000}", Budget()).fullmatch("aaa")
    assert not Pattern(r"(a{60000}){60000}", Budget()).fullmatch("aaa")


def test_the_budget_is_shared():
    budget = Budget(steps=160)
    Pattern(".*x", budget).fullmatch("a" * 50)
    with pytest.raises(PatternError, match="too long to match"):
        Pattern(".*x", budget).fullmatch("a" * 50)


@pytest.mark.parametrize(
    "pattern", ["[" + "".join(map(chr, range(200, 3000))) + "]x", ".*(?:){60}"]
)
def test_what_a_step_costs_is_counted(pattern):
    """A class of thousands of characters, which took an hour a file; repetitions of nothing."""
    Pattern(".*x", Budget(steps=200)).fullmatch("a" * 50)
    with pytest.raises(PatternError, match="too long to match"):
        Pattern(pattern, Budget(steps=60)).fullmatch("a" * 20)
