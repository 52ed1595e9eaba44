"""A model folder's tokenizer, read without transformers and held to it."""

import json

import pytest
from tokenizers import Tokenizer as HFTokenizer
from transformers import AutoTokenizer

from turret_server.errors import BadRequest, StartupError
from turret_server.pipeline.tokenizer import Tokenizer

TEXTS = ["the call", " the  the", "日本語 👍 é", "<s>the</s>", "", "a\n\nb", "[TOOL_CALLS] {}"]


@pytest.mark.parametrize("sort", ["byte_level", "sentencepiece", "metaspace"])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encodes_and_decodes_as_transformers_does(make_folder, sort, add_special_tokens):
    folder = make_folder(sort=sort)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=add_special_tokens)
        assert ours.encode(text, add_special_tokens) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_tokenizer_json_decides_on_bos_and_eos_as_in_transformers(make_folder):
    folder = make_folder(sort="sentencepiece", add_bos_token=False, add_eos_token=True)
    assert Tokenizer.load(folder).encode("the") == AutoTokenizer.from_pretrained(folder).encode(
        "the"
    )


def test_limits_saved_by_a_trainer_do_not_cut_prompts(make_folder):
    folder = make_folder()
    tokenizer = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(Tokenizer.load(folder).encode("a" * 100)) == 100
    assert len(Tokenizer.load(folder).encode("a")) == 1


def test_a_special_token_that_tokenizer_json_forgot_is_special(make_folder):
    folder = make_folder(pad_token="!!")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.is_special(tokenizer.token_id("!!"))
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.encode("the!!")
    assert tokenizer.encode("the!!") == ids
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "the"


def test_named_special_tokens_are_what_templates_see(make_folder):
    folder = make_folder(eos_token={"content": "<|im_end|>", "lstrip": False}, unk_token=None)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "<|im_end|>")


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ({}, []),
        ({"generation_config.json": {"eos_token_id": 7}}, [7]),
        ({"generation_config.json": {"eos_token_id": [7, 8]}}, [7, 8]),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 9}}, [9]),
        ({"generation_config.json": {"eos_token_id": 7}, "config.json": {"eos_token_id": 9}}, [7]),
        ({"config.json": {"eos_token_id": None}}, []),
    ],
)
def test_every_id_that_ends_an_answer_is_found(make_folder, files, more):
    folder = make_folder()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_token_ids == (tokenizer.token_id("</s>"), *more)


def test_templates_come_from_files_before_the_config(make_folder):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    folder = make_folder(chat_template=named)
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("a", "b")
    (folder / "chat_template.jinja").write_text("c")
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("c", "b")


@pytest.mark.parametrize("sort", ["byte_level", "sentencepiece", "metaspace"])
def test_the_bytes_of_tokens_join_to_the_text(tokenizers, sort):
    tokenizer = tokenizers[sort]
    ids = tokenizer.encode("the 日本語 👍 fall", add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(i) for i in ids).decode()
    assert joined.removeprefix(" ") == tokenizer.decode(ids)


def test_tokens_have_readable_and_distinct_texts(tokenizers):
    tokenizer = tokenizers["byte_level"]
    first, *_ = tokenizer.encode("👍")
    assert tokenizer.token_text(first) == r"bytes:\xf0\x9f"
    assert tokenizer.token_text(tokenizer.token_id("Ġthe")) == " the"
    assert tokenizer.token_text(tokenizer.token_id("</s>")) == "</s>"
    assert tokenizer.token_text(10**9) == tokenizer.token_text(-1) == ""
    sentencepiece = tokenizers["sentencepiece"]
    assert sentencepiece.token_text(sentencepiece.token_id("<0xF0>")) == r"bytes:\xf0"
    assert sentencepiece.token_text(sentencepiece.token_id("▁the")) == " the"


def test_half_a_surrogate_pair_is_refused(tokenizers):
    with pytest.raises(BadRequest, match="surrogate"):
        tokenizers["byte_level"].encode("a\ud800")


@pytest.mark.parametrize("ids", [[-1], [2**32], ["1"], [1.5], [None]])
def test_what_is_no_token_id_is_refused(tokenizers, ids):
    with pytest.raises(BadRequest, match="token id"):
        tokenizers["byte_level"].decode(ids)


def test_info_is_enough_for_a_client_without_the_files(make_folder):
    info = Tokenizer.load(make_folder("{{ messages }}", sort="sentencepiece")).info()
    assert info["bos_token"] == "<s>"
    assert info["eos_token"] == "</s>"
    assert info["chat_template"] == "{{ messages }}"
    assert (info["add_bos_token"], info["add_eos_token"]) == (True, False)
    json.dumps(info)


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    with pytest.raises(StartupError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 1}'])
def test_a_damaged_file_is_refused_by_name(make_folder, name, content):
    if name != "tokenizer.json" and content.startswith(b'{"'):
        return  # unknown fields of a config are nobody's business
    folder = make_folder()
    (folder / name).write_bytes(content)
    with pytest.raises(StartupError, match=name):
        Tokenizer.load(folder)


def test_counting_is_encoding_without_the_ids(make_folder):
    tokenizer = Tokenizer.load(make_folder())
    texts = ["", "The cat", "<|im_end|> é 日本"]
    assert tokenizer.count(texts) == [len(tokenizer.encode(t, False)) for t in texts]
    with pytest.raises(BadRequest, match="surrogate"):
        tokenizer.count(["fine", "\ud800"])


def test_the_texts_that_become_special_tokens(make_folder):
    tokenizer = Tokenizer.load(make_folder())
    lengths = [len(text) for text in tokenizer.special_texts]
    assert lengths
    assert lengths == sorted(lengths, reverse=True)
    for text in tokenizer.special_texts:
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.is_special(token)
