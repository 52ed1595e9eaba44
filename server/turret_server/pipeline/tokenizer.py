"""The tokenizer of a model folder, from its JSON files alone.

Uses the `tokenizers` library directly: transformers would bring torch into the API process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as HFTokenizer

from turret_server.errors import BadRequest, StartupError
from turret_server.pipeline.detokenizer import (
    ByteLevelDetokenizer,
    DecodeRules,
    Detokenizer,
    Pieces,
    SentencePieceDetokenizer,
    piece_of,
    read_rules,
)

# The names under which tokenizer_config.json keeps single special tokens; templates see them.
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """Text to ids and back. Thread-safe after construction; get one from `load`.

    Attributes:
        vocab_size: one more than the largest token id.
        vocabulary_digest: of all tokens with their ids; equal where ids mean the same.
        eos_token_ids: every id that ends an answer, the tokenizer's own first.
        bos_token: text of the beginning-of-sequence token.
        eos_token: text of the end-of-sequence token.
        special_tokens: name to text, as chat templates see them ("bos_token": "<s>").
        special_texts: what becomes a special token wherever it stands in a text.
        chat_template: the model's Jinja template.
        tool_template: the template to use when a request has tools, if the model has another.
        path: the tokenizer.json.
    """

    def __init__(
        self,
        tokenizer: HFTokenizer,
        rules: DecodeRules,
        *,
        path: Path,
        special_tokens: dict[str, str],
        eos_token_ids: tuple[int, ...],
        templates: Mapping[str, str],
        config: Mapping[str, Any],
    ):
        self.path = path
        self.special_tokens = special_tokens
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self.eos_token_ids = eos_token_ids
        self.chat_template = templates.get("default")
        self.tool_template = templates.get("tool_use")
        self._tokenizer = tokenizer
        self._rules = rules
        self._config = config
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        listed = json.dumps(sorted(vocabulary.items())).encode()
        self.vocabulary_digest = hashlib.sha256(listed).hexdigest()
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        # The longest first: one may begin with another.
        self.special_texts = sorted((t.content for t in added.values() if t.special), key=len)[::-1]
        self._pieces: dict[frozenset[int], Pieces] = {}  # by the ids that are left out
        self._texts: dict[int, str] = {}  # of tokens that log-probabilities named

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Takes tokenizer.json; beside it, where they exist, tokenizer_config.json,
        special_tokens_map.json, generation_config.json, config.json and chat_template.jinja.

        Raises:
            StartupError: a file is missing or damaged, or the tokenizer is of an unknown sort.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise StartupError(
                f"model {str(folder)!r} cannot be served",
                "it has no tokenizer.json",
                "Save the fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        try:
            tokenizer = HFTokenizer.from_file(str(path))
            rules = read_rules(json.loads(path.read_bytes()).get("decoder"))
        except StartupError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise _damaged(path, str(error)) from error
        # Limits a trainer saved are not the server's: prompts must never be cut silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()

        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(_read_json(folder / "special_tokens_map.json") | config)
        _mark_special(tokenizer, special.values())
        return cls(
            tokenizer,
            rules,
            path=path,
            special_tokens=special,
            eos_token_ids=_eos_ids(folder, tokenizer, special.get("eos_token")),
            templates=_templates(folder, config),
            config=config,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`.

        Special tokens written in the text become their ids.

        Raises:
            BadRequest: the text is not valid Unicode.
        """
        return self._encodings([text], add_special_tokens)[0].ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, special ones added to none.

        Raises:
            BadRequest: a text is not valid Unicode.
        """
        return [len(encoding) for encoding in self._encodings(texts, False)]

    def _encodings(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        # In batches also where there is one text: `encode` holds the interpreter all the while,
        # two seconds for half a megabyte, and counts characters that nobody asks for.
        try:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise BadRequest(
                "the text cannot be tokenised",
                "it holds half of a surrogate pair, which no Unicode text contains",
                "Send the whole character, or replace it by U+FFFD.",
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; ids outside the vocabulary have none.

        Raises:
            BadRequest: an id is not an integer from 0 to 2**32 - 1.
        """
        try:
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise BadRequest(
                "the tokens cannot be decoded",
                f"not every one is a token id: {error}",
                f"Send integers from 0 to {self.vocab_size - 1}.",
                param="tokens",
            ) from error

    def detokenizer(
        self, *, skip_special_tokens: bool, continues: bool, keep: Iterable[str] = ()
    ) -> Detokenizer:
        """Return the state of a new stream of tokens; see `TextStream`."""
        skip = frozenset[int]()
        if skip_special_tokens:
            skip = self._special_ids.difference(self.token_id(token) for token in keep)
        pieces = self._pieces.get(skip)
        if pieces is None:
            pieces = Pieces(self._rules, self._tokenizer.id_to_token, skip)
            self._pieces[skip] = pieces
        if self._rules.byte_level:
            return ByteLevelDetokenizer(pieces)
        return SentencePieceDetokenizer(pieces, continues=continues)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token inside a text; b"" for an unknown id."""
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return b""
        piece = piece_of(token, self._rules)
        if isinstance(piece, int):
            return bytes([piece])
        return piece if isinstance(piece, bytes) else piece.encode()

    def token_text(self, token_id: int) -> str:
        r"""Return one token inside a text.

        A token that is not whole characters reads `bytes:\xf0\x9f`, as OpenAI writes it, so that
        different tokens keep different names.
        """
        text = self._texts.get(token_id)
        if text is not None:
            return text
        data = self.token_bytes(token_id)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        if data:  # unknown ids are any numbers
            self._texts[token_id] = text
        return text

    def is_special(self, token_id: int) -> bool:
        """Tell whether `decode` leaves this token out by default."""
        return token_id in self._special_ids

    def vocabulary(self) -> dict[str, int]:
        """Every token as tokenizer.json spells it, with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text in the vocabulary."""
        return self._tokenizer.token_to_id(token)

    def info(self) -> dict[str, Any]:
        """Return what `/tokenizer_info` tells: enough to prepare prompts without the files."""
        return {
            "tokenizer_class": self._config.get("tokenizer_class", "PreTrainedTokenizerFast"),
            "vocab_size": self.vocab_size,
            "model_max_length": self._config.get("model_max_length"),
            **{name: self.special_tokens.get(name) for name in ("bos_token", "eos_token")},
            **self.special_tokens,
            "eos_token_ids": list(self.eos_token_ids),
            "add_bos_token": self._adds("bos_token"),
            "add_eos_token": self._adds("eos_token"),
            "chat_template": self.chat_template,
        }

    def _adds(self, name: str) -> bool:
        token = self.special_tokens.get(name)
        return token is not None and self.token_id(token) in self.encode("")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _damaged(path: Path, why: str) -> StartupError:
    return StartupError(
        f"{path.name!r} of model {str(path.parent)!r} cannot be read",
        why,
        "Download or save the model again.",
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens; a value may be text or a serialised AddedToken."""
    found = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _mark_special(tokenizer: HFTokenizer, tokens: Iterable[str]) -> None:
    """Make named tokens special, as transformers does, where tokenizer.json forgot to."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [t for t in tokens if t not in added and tokenizer.token_to_id(t) is not None]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])


def _eos_ids(folder: Path, tokenizer: HFTokenizer, eos_token: str | None) -> tuple[int, ...]:
    found: list[int] = []
    if eos_token is not None and (own := tokenizer.token_to_id(eos_token)) is not None:
        found.append(own)
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if named := [i for i in ids if type(i) is int and i >= 0]:
            found += named
            break
    return tuple(dict.fromkeys(found))


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name; files win over the config, as in transformers."""
    value = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for item in value:
            match item:
                case {"name": str(name), "template": str(template)}:
                    templates[name] = template
    files = {"default": folder / "chat_template.jinja"}
    extra = folder / "additional_chat_templates"
    files |= {path.stem: path for path in sorted(extra.glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise _damaged(path, str(error)) from error
    return templates
