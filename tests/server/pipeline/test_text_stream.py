"""A stream of tokens gives the text of `decode`, in pieces that are final."""

import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turret_server.errors import BadRequest
from turret_server.pipeline.stops import StopStrings
from turret_server.pipeline.text_stream import TextStream
from turret_server.pipeline.tokenizer import Tokenizer

# Text that splits badly: emoji with joiners and skin tones, CJK, combining marks, blanks, markup.
AWKWARD = [
    "👩‍👩‍👧",
    "👍🏽",
    "日本語",
    "é",
    "e\u0301",
    "ça va",
    "ñandú",
    " ",
    "  ",
    "\n",
    "\t",
    "the",
    "ll",
    "!!",
]
AWKWARD += ["<|im_end|>", "<tool_call>", "\ufffd", "\u0000", "ﷺ", "नमस्ते", "𝔘"]
texts = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=5)), max_size=12).map("".join)
sorts = st.sampled_from(["byte_level", "sentencepiece", "metaspace"])
# The tokenizers come from a fixture of the session and keep no state between examples.
hold = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def stream(
    tokenizer: Tokenizer, ids: list[int], stop: Sequence[str] = (), sizes: int = 1, **options: bool
) -> tuple[list[str], str | None]:
    """Push `ids` in groups of `sizes`; every piece, and the stop string found."""
    state = TextStream(tokenizer, StopStrings(stop) if stop else None, **options)
    pieces = [state.push(ids[at : at + sizes]) for at in range(0, len(ids), sizes)]
    return [*pieces, state.finish()], state.stopped


def cut(text: str, stop: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    """The slow truth: read character by character until one of `stop` is complete."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end if include_stop else end - len(longest)], longest
    return text, None


def encodable(text: str) -> str:
    return "".join(char for char in text if unicodedata.category(char) != "Cs")


@hold
@given(sort=sorts, text=texts, sizes=st.integers(1, 4), skip=st.booleans())
def test_text_comes_out_as_decode_gives_it(tokenizers, sort, text, sizes, skip):
    tokenizer = tokenizers[sort]
    ids = tokenizer.encode(encodable(text))
    pieces, _ = stream(tokenizer, ids, sizes=sizes, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@hold
@given(sort=sorts, data=st.data(), sizes=st.integers(1, 3), skip=st.booleans())
def test_random_ids_come_out_as_decode_gives_them(tokenizers, sort, data, sizes, skip):
    tokenizer = tokenizers[sort]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=40))
    pieces, _ = stream(tokenizer, ids, sizes=sizes, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@hold
@given(
    sort=sorts,
    text=texts,
    stop=st.lists(st.text(alphabet="the l!\né日", min_size=1, max_size=4), min_size=1, max_size=4),
    sizes=st.integers(1, 4),
    include=st.booleans(),
)
def test_text_ends_at_the_first_stop_string(tokenizers, sort, text, stop, sizes, include):
    tokenizer = tokenizers[sort]
    ids = tokenizer.encode(encodable(text))
    pieces, stopped = stream(tokenizer, ids, stop, sizes, include_stop=include)
    assert ("".join(pieces), stopped) == cut(tokenizer.decode(ids), stop, include)


@hold
@given(
    sort=sorts,
    text=texts,
    stop=st.lists(st.sampled_from(["the", "ll ", "日本", "!"]), max_size=2),
    data=st.data(),
)
def test_what_was_sent_stays_true_whatever_follows(tokenizers, sort, text, stop, data):
    """So no piece has half of a character, or the beginning of a stop string."""
    tokenizer = tokenizers[sort]
    ids = tokenizer.encode(encodable(text))
    random_rest = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4))
    rests = [random_rest, *(tokenizer.encode(s, add_special_tokens=False) for s in stop)]
    state, sent = TextStream(tokenizer, StopStrings(stop) if stop else None), ""
    for at, token in enumerate(ids, 1):
        sent += state.push([token])
        for rest in rests:
            assert cut(tokenizer.decode(ids[:at] + rest), stop)[0].startswith(sent)


def test_a_character_appears_with_its_last_byte(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("a👍b")
    pieces, _ = stream(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["a", "👍", "b"]


def test_an_unfinished_character_becomes_one_replacement_character(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("a👍")[:-1]
    assert stream(tokenizer, ids)[0] == ["a", *[""] * (len(ids) - 1), "\ufffd"]


def test_a_run_of_fallback_bytes_waits_for_its_end(tokenizers):
    """One bad byte turns the whole run into U+FFFD in `decode`, so none of it is certain before."""
    tokenizer = tokenizers["sentencepiece"]
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in [*"👍".encode(), 0xFF]]
    dot = tokenizer.token_id(".")
    assert stream(tokenizer, [*ids, dot])[0] == ["", "", "", "", "", "\ufffd" * 5 + ".", ""]
    assert stream(tokenizer, [*ids[:-1], dot])[0] == ["", "", "", "", "👍.", ""]


@pytest.mark.parametrize("sort", ["sentencepiece", "metaspace"])
def test_a_continued_text_keeps_its_leading_space(tokenizers, sort):
    ids = tokenizers[sort].encode("the", add_special_tokens=False)
    assert "".join(stream(tokenizers[sort], ids)[0]) == "the"
    assert "".join(stream(tokenizers[sort], ids, continues=True)[0]) == " the"


def test_of_two_stop_strings_the_first_to_become_complete_wins(tokenizers):
    tokenizer = tokenizers["byte_level"]
    pieces, stopped = stream(tokenizer, tokenizer.encode("xabcde"), ["abcd", "bc"])
    assert ("".join(pieces), stopped) == ("xa", "bc")


def test_nothing_comes_after_a_stop_string(tokenizers):
    tokenizer = tokenizers["byte_level"]
    state = TextStream(tokenizer, StopStrings(["!"]))
    assert state.push(tokenizer.encode("hi! more")) == "hi"
    assert (state.push(tokenizer.encode("more")), state.finish()) == ("", "")


def test_a_kept_special_token_stays_while_others_go(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("[TOOL_CALLS]x<|im_end|>")
    state = TextStream(tokenizer, keep=["[TOOL_CALLS]"])
    assert state.push(ids) + state.finish() == "[TOOL_CALLS]x"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(BadRequest, match="empty string"):
        StopStrings(["a", ""])


def test_a_long_stop_string_costs_no_more_per_token(tokenizers):
    """Adversarial for a naive search: every position is nearly the beginning of the stop string."""
    tokenizer = tokenizers["byte_level"]
    pieces, stopped = stream(tokenizer, tokenizer.encode("a" * 20_000), ["a" * 5_000 + "b"], 50)
    assert stopped is None
    assert "".join(pieces) == "a" * 20_000


def test_the_demo_tokenizer_streams_what_it_decodes(demo_tokenizer):
    ids = demo_tokenizer.encode("Zoë paid 12 € 👩‍👩‍👧 at 日本語 café.\n\n  def f(): pass")
    assert "".join(stream(demo_tokenizer, ids)[0]) == demo_tokenizer.decode(ids)


def test_no_stop_string_ends_the_first_min_tokens(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("a. b. c. d.")
    first = next(n for n in range(1, len(ids)) if "." in tokenizer.decode(ids[:n]))
    stream = TextStream(tokenizer, stop=StopStrings(["."]), min_tokens=first)
    text = "".join(stream.push([i]) for i in ids) + stream.finish()
    assert (text, stream.stopped) == ("a. b", ".")
