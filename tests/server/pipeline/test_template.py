"""A template can reach nothing, and has an end."""

import time
from contextlib import suppress

import pytest

from turret_server.errors import BadRequest, StartupError
from turret_server.pipeline import template as module
from turret_server.pipeline.template import ChatTemplate


@pytest.fixture
def quick(monkeypatch):
    """Little time and little room."""
    monkeypatch.setattr(module, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(module, "MAX_CHARS", 10_000)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [[]] * 9 recursive %}{{ loop([[]] * 9) if loop.depth < 40 }}{% endfor %}",
    ],
    ids=["loops", "filtered loops", "macros", "recursive loop"],
)
def test_endless_templates_are_stopped(quick, source):
    began = time.monotonic()
    with pytest.raises(BadRequest, match="did not finish"):
        ChatTemplate(source).render({})
    assert time.monotonic() - began < 2  # a hundred times less than any of them would take


def test_endless_output_is_stopped(quick):
    with pytest.raises(BadRequest, match=r"more than 10,000 characters") as caught:
        ChatTemplate("{% for i in range(99999) %}aaaa{% endfor %}").render({})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ ''.format_map(messages) }}{{ '{0.__class__}'.format(messages) }}",
        "{% include 'x' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ range(10**9) }}",
    ],
)
def test_nothing_forbidden_is_reached(source):
    # The sandbox raises, or gives an undefined value in place of an attribute.
    text = ""
    with suppress(BadRequest):
        text = ChatTemplate(source).render({"messages": [1]})
    assert text == ""


@pytest.mark.parametrize(
    "source", ["{{", "{% for %}", "{{ x | nosuchfilter }}", "{% generation %}"]
)
def test_invalid_jinja_is_refused_at_start(source):
    with pytest.raises(StartupError, match="chat template cannot be used"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for x in xs %}\n  {% if loop.last %}\n{{ x }}\n  {% endif %}\n{% endfor %}", "3\n"),
        ("{% for x in xs %}{{ loop.length }}{{ loop.revindex }}{% endfor %}", "333231"),
        ("{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% for x in xs %}{{ loop.nextitem }}{% else %}none{% endfor %}", "23"),
        ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{{ '<é&>' | tojson }}", '"<é&>"'),
        ("{{ d | tojson(indent=1, separators=(',', '=')) }}", '{\n "a"=1\n}'),
        ("{{ d | tojson(ensure_ascii=true, sort_keys=true) }}", '{"a": 1}'),
        ("{% generation %}{% set y = 1 %}a{% endgeneration %}{{ y is defined }}", "aFalse"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        (
            "{% set n = namespace(s=0) %}{% for x in xs %}{% set n.s = x %}{% endfor %}{{ n.s }}",
            "3",
        ),
    ],
)
def test_what_templates_use_works(source, text):
    assert ChatTemplate(source).render({"xs": [1, 2, 3], "d": {"a": 1}}) == text


def test_the_variables_of_a_template_are_known():
    source = (
        "{{ bos_token }}{% for m in messages %}{{ raise_exception(m) if thinking }}{% endfor %}"
    )
    assert ChatTemplate(source).variables == {"bos_token", "messages", "thinking"}
