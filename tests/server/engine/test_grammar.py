"""Masks that let through what satisfies a grammar, and nothing else."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from turret_server.demo import demo_model
from turret_server.engine.grammar import GrammarCompiler
from turret_server.errors import BadRequest, StartupError, Unprocessable

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["a", "b c", "é"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}
JSON = json.dumps({"grammars": [{"json_schema": SCHEMA}]})
DIGITS = "start: /[0-9]{2,3}/"


def byte_level() -> HFTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "r"), ('"', ":"), ("Ġ", '"'), ("1", "2")]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = HFTokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece() -> HFTokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *'▁abc{}[]":,é12', '"▁', "12"]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=[('"', "▁"), ("1", "2")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = HFTokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentencepiece], ids=lambda make: make.__name__)
def tokenizer(request) -> HFTokenizer:
    made = request.param()
    special = [AddedToken(t, special=True, normalized=False) for t in ("</s>", "<|end|>", "<|x|>")]
    made.add_special_tokens(special)
    return made


@pytest.fixture(scope="module")
def path(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def eos(tokenizer) -> tuple[int, ...]:
    return tuple(tokenizer.token_to_id(t) for t in ("</s>", "<|end|>"))


@pytest.fixture(scope="module")
def compiler(path, tokenizer, eos) -> GrammarCompiler:
    return GrammarCompiler(path, tokenizer.get_vocab_size(), eos)


def allowed(matcher, vocab_size: int) -> set[int]:
    mask = np.full((vocab_size + 31) // 32, -1, dtype=np.int32)
    matcher.fill_mask(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_sampled_satisfies_the_schema(compiler, tokenizer, eos, seed):
    choose, matcher, ids = random.Random(seed), compiler.matcher(JSON), []
    while not matcher.finished:
        token = choose.choice(sorted(allowed(matcher, tokenizer.get_vocab_size())))
        assert matcher.accept(token)
        ids.append(token)
        assert len(ids) < 500
    text = tokenizer.decode([i for i in ids if i not in eos])
    value = json.loads(text)
    assert list(value) == ["name", "kind", "tags"]
    assert len(value["name"]) <= 6
    assert value["kind"] in SCHEMA["properties"]["kind"]["enum"]
    assert all(isinstance(tag, bool) for tag in value["tags"])


def test_end_of_sequence_is_allowed_exactly_when_the_grammar_accepts(compiler, tokenizer, eos):
    matcher, size = compiler.matcher(DIGITS), tokenizer.get_vocab_size()
    digit = tokenizer.encode("1", add_special_tokens=False).ids[-1]
    for may_end, finished in ((False, False), (False, False), (True, False), (True, True)):
        assert (allowed(matcher, size) >= set(eos)) == may_end
        assert bool(allowed(matcher, size) & set(eos)) == may_end
        assert matcher.finished == finished
        if not finished:
            assert matcher.accept(digit)
    assert allowed(matcher, size) == set(eos)


def test_end_of_sequence_finishes(compiler, tokenizer, eos):
    for end in eos:
        matcher = compiler.matcher("start: /[0-9]*/")
        assert not matcher.finished
        assert matcher.accept(end)
        assert matcher.finished


def test_other_special_tokens_are_never_text(compiler, tokenizer, eos):
    matcher = compiler.matcher(r"start: /(.|\n)*/")
    found = allowed(matcher, tokenizer.get_vocab_size())
    assert tokenizer.token_to_id("<|x|>") not in found
    assert found >= set(eos)


@pytest.mark.parametrize("extra", [1, 31, 32, 33, 1000])
def test_ids_beyond_the_tokenizer_are_banned(path, tokenizer, eos, extra):
    """A model's vocabulary is often padded to a round number."""
    size = tokenizer.get_vocab_size()
    matcher = GrammarCompiler(path, size + extra, eos).matcher(r"start: /(.|\n)*/")
    assert max(allowed(matcher, size + extra)) < size


def test_a_model_may_know_fewer_tokens_than_its_tokenizer(path, tokenizer, eos):
    size = tokenizer.get_vocab_size()
    small, full = (GrammarCompiler(path, n, eos).matcher(DIGITS) for n in (size - 40, size))
    assert allowed(small, size - 40) == {
        i for i in allowed(full, size) if i < 32 * (-(-size // 32) - 1)
    }


def test_a_refused_token_ends_the_matcher(compiler, tokenizer):
    matcher = compiler.matcher(DIGITS)
    assert not matcher.accept(tokenizer.encode("a", add_special_tokens=False).ids[-1])
    assert not matcher.finished
    with pytest.raises(Unprocessable, match="kept to its grammar"):
        allowed(matcher, tokenizer.get_vocab_size())


def test_an_impossible_token_is_refused(compiler):
    assert not compiler.matcher(DIGITS).accept(10**6)


def test_matchers_of_one_grammar_are_independent(compiler, tokenizer):
    digit = tokenizer.encode("1", add_special_tokens=False).ids[-1]
    first, second = compiler.matcher(DIGITS), compiler.matcher(DIGITS)
    for _ in range(3):
        assert first.accept(digit)
    assert first.finished
    assert not second.finished
    assert second.accept(digit)


def test_threads_may_ask_for_matchers(compiler, tokenizer):
    grammars = [f"start: /[0-9]{{{n}}}/" for n in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        matchers = list(pool.map(compiler.matcher, grammars * 8))
    assert all(not matcher.finished for matcher in matchers)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("start: nothing", "unknown name"),
        ("start: /(/", "unclosed group"),
        ('{"grammars": [{"json_schema": {"type": "strin"}}]}', "strin"),
        ('{"grammars": []}', "empty"),
        ("", "."),
    ],
)
def test_an_invalid_grammar_is_refused_with_the_reason(compiler, grammar, why):
    with pytest.raises(BadRequest, match=why):
        compiler.matcher(grammar)


def test_a_grammar_that_gets_too_complex_ends_its_own_answer(compiler, tokenizer):
    """Ambiguous without bound: each character may end every rule begun before."""
    matcher = compiler.matcher('start: start "a" | start start start | ""')
    token = tokenizer.encode("a", add_special_tokens=False).ids[-1]

    def run() -> None:
        for _ in range(1_000):
            allowed(matcher, tokenizer.get_vocab_size())
            matcher.accept(token)

    with pytest.raises(Unprocessable, match="Simplify"):
        run()


def test_errors_do_not_show_the_user_s_text(compiler, tokenizer):
    matcher = compiler.matcher('start: "secret"')
    matcher.accept(tokenizer.encode("x", add_special_tokens=False).ids[-1])
    with pytest.raises(Unprocessable) as caught:
        allowed(matcher, tokenizer.get_vocab_size())
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match="structured output"):
        GrammarCompiler(tmp_path / "tokenizer.json", 100, (0,))


def test_the_demo_model_s_tokenizer_is_understood():
    folder = demo_model(progress=False)
    tokenizer = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    matcher = GrammarCompiler(folder / "tokenizer.json", 49_152, (2,)).matcher(JSON)
    ids = tokenizer.encode('{"name": "Zoë", "kind": "b c", "tags": [true]}').ids
    for token in ids:
        assert token in allowed(matcher, 49_152)
        assert matcher.accept(token)
    assert allowed(matcher, 49_152) == {2}
