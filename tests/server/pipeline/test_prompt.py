"""Prompts are those of transformers' apply_chat_template; what no template expects is refused."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from turret_server.errors import BadRequest, StartupError, Unprocessable
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.tokenizer import Tokenizer

TEMPLATES = {p.stem: p.read_text() for p in (Path(__file__).parent / "templates").iterdir()}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> & here, in °C",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SIMPLE = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Größe? 日本 👍"},
    {"role": "assistant", "content": "  Sure. "},
    {"role": "user", "content": "Go on.\n"},
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}},
}
TOOLS = [
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"t": 21}'},
    {"role": "assistant", "content": "21 °C"},
    {"role": "user", "content": "Thanks"},
]


@pytest.fixture(scope="module")
def pairs(make_folder):
    """Our prompt and transformers' tokenizer, for each template."""
    folders = {name: make_folder(template) for name, template in TEMPLATES.items()}
    return {
        name: (ChatPrompt(Tokenizer.load(folder)), AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


def theirs(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, **options)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [SIMPLE, SIMPLE[1:], SIMPLE[1:2], TOOLS, TOOLS[:3]])
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, WEATHER]])
@pytest.mark.parametrize("generation", [True, False])
def test_a_prompt_is_what_transformers_makes(pairs, name, messages, tools, generation):
    ours, tokenizer = pairs[name]
    wanted = theirs(tokenizer, messages, tools=tools, add_generation_prompt=generation)
    assert ours.render(messages, tools, add_generation_prompt=generation) == wanted


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [SIMPLE[:3], SIMPLE])
def test_the_last_message_is_continued_as_in_transformers(pairs, name, messages):
    ours, tokenizer = pairs[name]
    wanted = theirs(tokenizer, messages, continue_final_message=True)
    got = ours.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert got == wanted


@pytest.mark.parametrize("generation", [True, False])
def test_the_demo_model_prompts_as_in_transformers(demo_folder, demo_tokenizer, generation):
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    for messages in (SIMPLE, SIMPLE[1:]):
        wanted = theirs(tokenizer, messages, add_generation_prompt=generation)
        assert ChatPrompt(demo_tokenizer).render(messages, None, generation) == wanted


def test_template_variables_reach_the_template(pairs):
    ours, tokenizer = pairs["qwen"]
    wanted = theirs(tokenizer, SIMPLE, add_generation_prompt=True, enable_thinking=False)
    assert ours.render(SIMPLE, template_kwargs={"enable_thinking": False}) == wanted


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "tools", "bos_token", "range"])
def test_only_the_template_s_own_variables_may_be_set(pairs, name):
    with pytest.raises(BadRequest, match="enable_thinking") as caught:
        pairs["qwen"][0].render(SIMPLE, template_kwargs={name: []})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_thoughts_are_found_under_any_of_their_names(pairs):
    ours, tokenizer = pairs["qwen"]
    for field in ("reasoning_content", "reasoning", "thinking"):
        messages = [SIMPLE[1], {"role": "assistant", "content": "a", field: "hm"}, SIMPLE[1]]
        assert ours.render(messages, add_generation_prompt=False) == theirs(tokenizer, messages)
        assert "<think>hm</think>a" in ours.render_text(messages)


def test_arguments_in_openai_s_form_are_what_the_template_wants(pairs):
    ours, tokenizer = pairs["llama3"]
    wire = copy.deepcopy(TOOLS)
    wire[1] |= {"content": None}
    wire[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])
    assert ours.render(wire) == theirs(tokenizer, TOOLS, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("text", "shown"), [("{broken", '"{broken"'), ("[1]", '"[1]"'), ("", "{}"), (None, "{}")]
)
def test_broken_arguments_of_the_past_do_not_end_a_conversation(pairs, text, shown):
    messages = copy.deepcopy(TOOLS)
    messages[1]["tool_calls"][0]["function"]["arguments"] = text
    assert f'"parameters": {shown}}}' in pairs["llama3"][0].render_text(messages)


def test_text_parts_are_joined_and_null_fields_dropped(pairs):
    ours = pairs["qwen"][0]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ours.render([{"role": "user", "content": parts, "name": None}]) == ours.render(
        [{"role": "user", "content": "a\nb"}]
    )


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"content": None, "tool_calls": []}])
def test_an_answer_without_content_was_an_empty_one(demo_tokenizer, fields):
    ours = ChatPrompt(demo_tokenizer)
    conversation = [SIMPLE[1], {"role": "assistant", **fields}, SIMPLE[1]]
    empty = [SIMPLE[1], {"role": "assistant", "content": ""}, SIMPLE[1]]
    assert ours.render(conversation) == ours.render(empty)


def test_developer_messages_are_system_messages(pairs):
    ours = pairs["qwen"][0]
    developer = [{**SIMPLE[0], "role": "developer"}, *SIMPLE[1:]]
    assert ours.render(developer) == ours.render(SIMPLE)


def test_strict_is_not_shown_to_the_model(pairs):
    ours = pairs["qwen"][0]
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    assert ours.render(SIMPLE, [strict]) == ours.render(SIMPLE, [WEATHER])


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0]"),
        ([{"role": 1, "content": "hi"}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([SIMPLE[1], {"role": "assistant", "tool_calls": "x"}], "messages[1].tool_calls"),
        ([SIMPLE[1], {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0]"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_by_place(pairs, messages, param):
    with pytest.raises(BadRequest) as caught:
        pairs["llama3"][0].render(messages)
    assert caught.value.param == param


def test_what_the_template_stumbles_over_is_refused(pairs):
    with pytest.raises(BadRequest, match="content") as caught:
        pairs["mistral"][0].render([{"role": "user"}])
    assert caught.value.param == "messages"


def test_the_template_s_own_refusal_is_the_reason_given(pairs):
    with pytest.raises(BadRequest, match="roles must alternate user/assistant") as caught:
        pairs["mistral"][0].render([SIMPLE[1], SIMPLE[1]])
    assert caught.value.param == "messages"


def test_continuing_and_beginning_a_message_exclude_each_other(pairs):
    with pytest.raises(BadRequest, match="begin a new message"):
        pairs["qwen"][0].render(SIMPLE, continue_final_message=True)


def test_a_message_without_content_cannot_be_continued(pairs):
    with pytest.raises(BadRequest, match="no content to continue"):
        pairs["llama3"][0].render(TOOLS[:2], None, False, continue_final_message=True)


def test_a_message_that_the_template_leaves_out_cannot_be_continued(make_folder):
    prompt = ChatPrompt(Tokenizer.load(make_folder("{{ messages[0].content }}")))
    with pytest.raises(BadRequest, match="leaves out"):
        prompt.render(SIMPLE, None, False, continue_final_message=True)


def test_a_model_without_a_template_cannot_chat(make_folder):
    with pytest.raises(Unprocessable, match="no chat template"):
        ChatPrompt(Tokenizer.load(make_folder())).render(SIMPLE)


def test_a_broken_template_is_refused_at_start(make_folder):
    with pytest.raises(StartupError, match="chat template"):
        ChatPrompt(Tokenizer.load(make_folder("{% if %}")))


def test_an_operator_s_template_replaces_the_model_s(make_folder):
    tokenizer = Tokenizer.load(make_folder("model"))
    assert ChatPrompt(tokenizer, "operator").render_text(SIMPLE) == "operator"


def test_a_model_s_tool_template_is_used_with_tools(make_folder):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b{{ tools }}"}]
    prompt = ChatPrompt(Tokenizer.load(make_folder(chat_template=named)))
    assert prompt.render_text(SIMPLE) == "a"
    assert prompt.render_text(SIMPLE, [WEATHER]).startswith("b[{")


def test_special_tokens_of_the_template_are_not_doubled(make_folder):
    folder = make_folder("{{ bos_token }}the", sort="sentencepiece")
    tokenizer = Tokenizer.load(folder)
    bos = tokenizer.token_id("<s>")
    assert ChatPrompt(tokenizer).render(SIMPLE).count(bos) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "function", "name", "arguments", "content", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "x", 1])
any_messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": roles,
            "content": json_values,
            "tool_calls": json_values,
            "tool_call_id": json_values,
            "reasoning": json_values,
        },
    )
    | json_values,
    max_size=4,
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    messages=any_messages,
    tools=st.none()
    | st.lists(st.just(WEATHER) | st.dictionaries(st.text(max_size=3), json_values)),
    last=st.booleans(),
)
def test_any_messages_are_rendered_or_refused(pairs, name, messages, tools, last):
    prompt = pairs[name][0]
    try:
        ids = prompt.render(messages, tools, not last, continue_final_message=last)
    except BadRequest as error:
        assert error.param  # noqa: PT017
        assert error.fix  # noqa: PT017
    else:
        assert all(isinstance(token, int) for token in ids)


class TestToolsWithoutTemplate:
    """SmolLM2's template, like many, knows neither tools nor calls nor results."""

    @pytest.fixture
    def prompt(self, demo_tokenizer) -> ChatPrompt:
        return ChatPrompt(demo_tokenizer)

    def test_definitions_join_the_system_message(self, prompt):
        text = prompt.render_text(SIMPLE, [WEATHER])
        system, _, rest = text.partition("<|im_end|>")
        assert system.startswith(
            "<|im_start|>system\nBe <brief> & kind.\n\nYou can call functions."
        )
        assert f"<tools>\n{json.dumps(WEATHER, ensure_ascii=False)}\n</tools>" in system
        assert rest == prompt.render_text(SIMPLE).partition("<|im_end|>")[2]

    def test_without_a_system_message_they_make_one(self, prompt):
        text = prompt.render_text(SIMPLE[1:], [WEATHER])
        assert text.startswith("<|im_start|>system\nYou can call functions.")

    def test_calls_and_results_become_text(self, prompt):
        results = [TOOLS[2], {**TOOLS[2], "content": "more"}]
        text = prompt.render_text([*TOOLS[:2], *results, TOOLS[4]], [WEATHER])
        call = '{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}'
        assert f"assistant\n<tool_call>\n{call}\n</tool_call><|im_end|>\n" in text
        assert (
            '<|im_start|>user\n<tool_response>\n{"t": 21}\n</tool_response>\n'
            "<tool_response>\nmore\n</tool_response><|im_end|>\n"
        ) in text

    def test_the_caller_s_messages_stay_as_they_are(self, prompt):
        before = copy.deepcopy(TOOLS)
        prompt.render(TOOLS, [WEATHER])
        assert before == TOOLS


@pytest.mark.parametrize(
    ("template", "parser"),
    [(t, p) for t, p in (("llama3", "llama3_json"), ("mistral", "mistral"), ("qwen", "hermes"))],
)
def test_the_template_tells_the_tool_parser(pairs, template, parser):
    assert pairs[template][0].tool_parser.name == parser


def test_models_without_tools_in_their_template_speak_hermes(demo_tokenizer):
    assert ChatPrompt(demo_tokenizer).tool_parser.name == "hermes"


@pytest.mark.parametrize("form", ["[TOOL_CALLS]name[ARGS]{}", "<tool_call><function=f>", "<call>"])
def test_an_unknown_form_of_calls_has_no_parser(make_folder, form):
    tokenizer = Tokenizer.load(make_folder("{{ tools }}" + form))
    assert ChatPrompt(tokenizer).tool_parser is None
