"""Adapters of turret.toml."""

from __future__ import annotations

import pytest

from turret_server.errors import StartupError
from turret_server.sources.settings import AdapterSetting, check_remotes, parse_adapters

DIGEST = "ab" * 32


def test_both_forms():
    table = f'{{"source": "./legal", "digest": "sha256:{DIGEST.upper()}", "pin": true, "share": 2}}'
    assert parse_adapters({"sql": "owner/name", "legal": table}) == {
        "sql": AdapterSetting("owner/name"),
        "legal": AdapterSetting("./legal", DIGEST, pin=True, share=2.0),
    }


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a,b", "./x", "it contains ','"),
        ("x", "{", "Expecting"),
        ("x", "{}", "'source' is missing"),
        ("x", '{"source": "a", "rank": 4}', "'rank' is not known"),
        ("x", '{"source": "a", "digest": "abc"}', "64 hexadecimal digits"),
        ("x", '{"source": "a", "digest": 4}', "'digest' is no text"),
        ("x", '{"source": "a", "pin": "yes"}', "neither true nor false"),
        ("x", '{"source": "a", "share": 0}', "'share' is no number above 0"),
        ("x", '{"source": "a", "share": "2"}', "'share' is no number above 0"),
    ],
)
def test_what_is_refused(name: str, text: str, why: str):
    with pytest.raises(StartupError, match=f"adapter {name!r} cannot be served: .*{why}"):
        parse_adapters({name: text})


def test_prefixes():
    check_remotes(["hf://", "hf://owner", "hf://owner/name@v1", "s3://bucket/x/", "https://a.org"])
    for prefix in ("owner/name", "hf:owner", "s3://a/../b", "https://user@host", "://x"):
        with pytest.raises(StartupError, match="--adapter-remote"):
            check_remotes([prefix])
