"""From a model's tokenizer.json and chat template to the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..tokenizer_files import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER
from .header import GGUFError
from .pretokenizers import name_of
from .tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_tokenizer,
)

_PREFIX = "tokenizer.ggml."
# Below the score of every merge: tokens that no merge makes are found as they are or not at all.
_NEVER_MERGED = -1e9
# Words, digits, cases, white space and scripts: what tokenizers differ in. None begins with a
# space, before which programs write SentencePiece's first one and some tokenizer.json do not.
_PROBES = (
    "The quick brown fox doesn't jump over 12345 lazy dogs, does it? I'LL see.",
    "two  or   three spaces\tand\n\n tabs\r\n   ",
    "def f(x):\n    return x**2 + 3.14  # comment <|tag|> </s>",
    "Größe, naïve, déjà-vu; Привет мир! 你好，世界。こんにちは 안녕 שלום ١٢٣ 😀👍🏽",
    "https://example.org/a_b?c=1&d=%20 $100.50 (50%) [x] {y} ...!!!",
)


def tokenizer_metadata(files: Mapping[str, bytes], config: ModelConfig) -> dict[str, Any]:
    """Give the keys ``tokenizer.*``, from which llama.cpp and `read_tokenizer` read a tokenizer.

    Parameters
    ----------
    files : mapping of str to bytes
        As `Checkpoint.tokenizer_files`; without a tokenizer.json the file says that it has none.
    config : ModelConfig
        Gives the number of tokens, and the ids where `files` leaves them out.

    Raises
    ------
    GGUFError
        Where the tokenizer works in a way that GGUF has no name for.
    """
    ids = _config_ids(config)
    if TOKENIZER not in files:
        return {f"{_PREFIX}model": "no_vocab", **ids}
    document = json.loads(files[TOKENIZER])
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise _inexpressible(f"it is a {model.get('type')}, not a BPE")
    tokens, types = _tokens(document, config.vocab_size)
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges", [])]
    values: dict[str, Any]
    if model.get("byte_fallback"):
        values = _sentencepiece(document, tokens, merges)
    else:
        name = name_of(document.get("pre_tokenizer"))
        if name is None or document.get("normalizer"):
            raise _inexpressible("it cuts text into words in a way of its own")
        if name == "llama-bpe" and not model.get("ignore_merges"):
            # The same cut, but with merges inside words that are tokens.
            raise _inexpressible("it merges inside words that are tokens")
        values = {"model": "gpt2", "pre": name, "merges": [" ".join(merge) for merge in merges]}
    begins, ends = _ends(document.get("post_processor"))
    keyed = {
        "model": values.pop("model"),
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        **values,
        "add_bos_token": begins,
        "add_eos_token": ends,
    }
    found = {f"{_PREFIX}{key}": value for key, value in keyed.items()}
    found |= {**ids, **_special_ids(files, tokens), **_end_ids(config)}
    if CHAT_TEMPLATE in files:
        found["tokenizer.chat_template"] = files[CHAT_TEMPLATE].decode()
    _check(found, files[TOKENIZER], config.vocab_size)
    return found


@dataclass(frozen=True)
class _Written:
    """Metadata as a file would have it."""

    path: Path
    metadata: Mapping[str, Any]


def _check(metadata: Mapping[str, Any], original: bytes, vocabulary: int) -> None:
    """Read the metadata back, and refuse it where a text becomes other tokens than before."""
    from tokenizers import Tokenizer

    written = read_tokenizer(_Written(Path("the export"), metadata), vocabulary)
    before = Tokenizer.from_buffer(original)
    after = Tokenizer.from_buffer(written[TOKENIZER])
    for text in _PROBES:
        if before.encode(text).ids != after.encode(text).ids:
            raise _inexpressible(f"it would read {text[:30]!r} differently")


def _tokens(document: Mapping[str, Any], count: int) -> tuple[list[str], list[int]]:
    """Give all tokens in order with their kinds; numbers that mean nothing become unused ones."""
    tokens = [f"[PAD{number}]" for number in range(count)]
    types = [UNUSED] * count
    model = document["model"]
    bytes_fall_back = bool(model.get("byte_fallback"))
    listed = {number: token for token, number in model["vocab"].items()}
    added = {entry["id"]: entry for entry in document.get("added_tokens", [])}
    if max([*listed, *added], default=0) >= count:
        raise _inexpressible(f"it has tokens beyond the {count} that the model knows")
    for number, token in listed.items():
        is_byte = bytes_fall_back and len(token) == 6 and token.startswith("<0x")
        tokens[number], types[number] = token, BYTE if is_byte else NORMAL
    for number, entry in added.items():
        tokens[number] = entry["content"]
        types[number] = CONTROL if entry.get("special") else USER_DEFINED
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        types[model["vocab"][unknown]] = UNKNOWN
    return tokens, types


def _sentencepiece(
    document: Mapping[str, Any], tokens: list[str], merges: list[list[str]]
) -> dict[str, Any]:
    """Give the scores that order the merges as the list of merges does."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    scores = [-float(rank[token]) if token in rank else _NEVER_MERGED for token in tokens]
    steps = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
    if "Prepend" in steps:
        prefix = True
    elif "Metaspace" in steps:
        prefix = '"never"' not in steps
    elif SPACE in json.dumps(document.get("normalizer"), ensure_ascii=False):
        prefix = False
    else:
        raise _inexpressible("it does not write spaces as SentencePiece does")
    return {
        "model": "llama",
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": prefix,
    }


def _ends(post_processor: Any) -> tuple[bool, bool]:
    """Tell whether a tokenizer.json writes a token before a text, and one after it."""
    if not isinstance(post_processor, dict):
        return False, False
    if post_processor.get("type") == "Sequence":
        parts = [_ends(part) for part in post_processor.get("processors", [])]
        return any(begins for begins, _ in parts), any(ends for _, ends in parts)
    single = post_processor.get("single", [])
    if post_processor.get("type") != "TemplateProcessing" or not single:
        return False, False
    return "SpecialToken" in single[0], "SpecialToken" in single[-1]


def _special_ids(files: Mapping[str, bytes], tokens: list[str]) -> dict[str, int]:
    """Find the numbers of the tokens that special_tokens.json names."""
    named = json.loads(files.get(SPECIAL_TOKENS, b"{}"))
    return {
        f"{_PREFIX}{key}_id": tokens.index(token)
        for key, token in named.items()
        if key in ("bos_token", "eos_token") and token in tokens
    }


def _config_ids(config: ModelConfig) -> dict[str, int]:
    begin = config.bos_token_id
    return ({} if begin is None else {f"{_PREFIX}bos_token_id": begin}) | _end_ids(config)


def _end_ids(config: ModelConfig) -> dict[str, int]:
    """Give the tokens that end a generation: GGUF has room for one that ends a text, and a turn."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    return dict(zip((f"{_PREFIX}{key}" for key in keys), config.eos_token_ids, strict=False))


def _inexpressible(why: str) -> GGUFError:
    return GGUFError(
        f"The model's tokenizer cannot be written to GGUF: {why}.",
        "Export it without a tokenizer by removing tokenizer.json from a copy of the model.",
    )
