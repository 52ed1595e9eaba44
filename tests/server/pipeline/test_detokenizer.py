"""Which decoders of a tokenizer.json are understood, and that the others are refused by name."""

import json

import pytest
from tokenizers import decoders

from turret_server.errors import StartupError
from turret_server.pipeline.detokenizer import DecodeRules, read_rules


def as_json(decoder: decoders.Decoder) -> dict:
    return json.loads(decoder.__getstate__())


REPLACE, BYTES, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
REPLACED = (("▁", " "),)


@pytest.mark.parametrize(
    ("decoder", "rules"),
    [
        (decoders.ByteLevel(), DecodeRules(byte_level=True)),
        (decoders.Sequence([decoders.ByteLevel()]), DecodeRules(byte_level=True)),
        (
            decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 1, 0)]),
            DecodeRules(replace=REPLACED, byte_fallback=True, strip=" ", strip_count=1),
        ),
        (
            decoders.Sequence([REPLACE, BYTES, FUSE]),
            DecodeRules(replace=REPLACED, byte_fallback=True),
        ),
        (decoders.Metaspace(), DecodeRules(replace=REPLACED, drop_in_first="▁")),
        (decoders.Metaspace(prepend_scheme="never"), DecodeRules(replace=REPLACED)),
        (
            decoders.Sequence([BYTES, decoders.Metaspace()]),
            DecodeRules(replace_after=REPLACED, byte_fallback=True, drop_in_first="▁"),
        ),
    ],
)
def test_decoders_of_the_llama_family_are_read(decoder, rules):
    assert read_rules(as_json(decoder)) == rules


def test_an_older_metaspace_is_read():
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}
    assert read_rules(old) == DecodeRules(replace=REPLACED)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([REPLACE, decoders.Strip(" ", 1, 0)]),  # strips every token
        decoders.Sequence([REPLACE, FUSE, decoders.Strip(" ", 0, 1)]),  # needs to see the end
        decoders.Sequence([FUSE, decoders.Replace("ab", " ")]),  # may join two tokens
    ],
)
def test_other_decoders_are_refused_by_name(decoder):
    with pytest.raises(StartupError, match="its decoder is"):
        read_rules(as_json(decoder))


def test_a_tokenizer_without_a_decoder_is_refused():
    with pytest.raises(StartupError, match="no decoder"):
        read_rules(None)
