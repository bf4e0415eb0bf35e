"""From the tokenizer in a GGUF file's metadata to the files that a bundle holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..tokenizer_files import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER
from .header import GGUFError, StringArray
from .pretokenizers import PRE_TOKENIZERS, WHOLE_WORDS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The kinds of tokens in ``tokenizer.ggml.token_type``."""

SPACE = "▁"
_PREFIX = "tokenizer.ggml."
_LLAMA3_FIRST = "<|begin_of_text|>"
_NONE = ("no_vocab", "none")
_LONGEST_TOKEN = 4096


class Described(Protocol):
    """A file, of which only the metadata matters here."""

    @property
    def path(self) -> Path:
        """What to call it in an error."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Its values by key."""


def read_tokenizer(file: Described, vocabulary: int) -> dict[str, bytes]:
    """Give ``tokenizer.json``, ``chat_template.jinja`` and ``special_tokens.json``.

    Parameters
    ----------
    file : Described
        The file.
    vocabulary : int
        Rows of the embedding; there are no more tokens.

    Returns
    -------
    dict of str to bytes
        As `Checkpoint.tokenizer_files`; empty for a file without a tokenizer.

    Raises
    ------
    GGUFError
        Where the tokenizer is damaged, or of a kind that fabric does not read.
    """
    kind = file.metadata.get(f"{_PREFIX}model")
    if kind is None or kind in _NONE:
        return {}
    if kind not in ("gpt2", "llama"):
        raise GGUFError(
            f"{file.path} has a tokenizer of the kind {str(kind)[:40]!r}, which fabric does not "
            "read.",
            "Use the model's Hugging Face folder.",
        )
    tokens = _strings(file, "tokens")
    if any(len(token) > _LONGEST_TOKEN for token in tokens):
        raise _lacking(file, "tokens")
    if not 0 < len(tokens) <= vocabulary or len(set(tokens)) != len(tokens):
        raise GGUFError(
            f"{file.path} has {len(set(tokens))} different tokens of {len(tokens)} for an "
            f"embedding of {vocabulary} rows.",
            "Download or convert the file again.",
        )
    types = [int(kind) for kind in _numbers(file, "token_type", len(tokens), NORMAL)]
    build = _byte_level if kind == "gpt2" else _sentencepiece
    document = build(file, tokens, types)
    document["added_tokens"] = _added(tokens, types)
    _begin_and_end(file, document, tokens)
    numbers = {key: _token(file, f"{key}_id", len(tokens)) for key in ("bos_token", "eos_token")}
    special = {key: None if n is None else tokens[n] for key, n in numbers.items()}
    files = {
        TOKENIZER: json.dumps(document, ensure_ascii=False).encode(),
        SPECIAL_TOKENS: json.dumps(special).encode(),
    }
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        files[CHAT_TEMPLATE] = template.encode()
    return files


def begins_with_token(metadata: Mapping[str, Any]) -> bool:
    """Tell whether a text begins with the begin token, as programs decide it for this file."""
    kind = metadata.get(f"{_PREFIX}model")
    default = kind != "gpt2" or metadata.get(f"{_PREFIX}pre", "llama-bpe") in WHOLE_WORDS
    return bool(metadata.get(f"{_PREFIX}add_bos_token", default))


def _byte_level(file: Described, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """Give the tokenizer.json of a byte-level BPE, whose merges are in the file."""
    merges = [merge.partition(" ") for merge in _strings(file, "merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for left, space, right in merges:
        if not space or not {left, right, left + right} <= vocabulary.keys():
            raise GGUFError(
                f"{file.path} has a merge {left + space + right!r} of tokens that do not exist.",
                "Download or convert the file again.",
            )
    name = _pre_tokenizer(file, tokens)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[name],
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in WHOLE_WORDS,
            "vocab": vocabulary,
            "merges": [[left, right] for left, _, right in merges],
        },
    }


def _pre_tokenizer(file: Described, tokens: Sequence[str]) -> str:
    """Find the file's pre-tokenizer; without a name only one vocabulary tells it."""
    name = file.metadata.get(f"{_PREFIX}pre")
    # Microsoft's own file of 2B-4T says nothing; its vocabulary is that of Llama 3.
    if name is None and len(tokens) > 128000 and tokens[128000] == _LLAMA3_FIRST:
        return "llama-bpe"
    if name not in PRE_TOKENIZERS:
        stated = "no pre-tokenizer" if name is None else f"the pre-tokenizer {str(name)[:40]!r}"
        raise GGUFError(
            f"{file.path} names {stated}, so its text would be cut differently than in training.",
            f"Use a file that names one of {', '.join(PRE_TOKENIZERS)}, or the model's Hugging "
            "Face folder.",
        )
    return name


def _sentencepiece(file: Described, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """Give the tokenizer.json of a SentencePiece BPE, whose merges follow from the scores."""
    scores = _numbers(file, "scores", len(tokens), None)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN),
                   None)  # fmt: skip
    prefix = file.metadata.get(f"{_PREFIX}add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges_of_scores(
                {
                    token: score
                    for token, score, kind in zip(tokens, scores, types, strict=True)
                    if kind in (NORMAL, USER_DEFINED, UNUSED)
                }
            ),
        },
    }


def merges_of_scores(scores: Mapping[str, float]) -> list[list[str]]:
    """Give the merges that make every token of two others, the best score first.

    SentencePiece joins, of all neighbours that form a token, those whose token has the best score;
    a list of merges in the order of the scores does the same.
    """
    pairs = [
        (-score, token[:cut], token[cut:])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    # Of two ways to the same token the one with the better parts comes first.
    pairs.sort(key=lambda pair: (pair[0], -scores[pair[1]] - scores[pair[2]]))
    return [[left, right] for _, left, right in pairs]


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Give the tokens that are found in a text before it is cut: control and user-defined."""
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def _begin_and_end(file: Described, document: dict[str, Any], tokens: Sequence[str]) -> None:
    """Set the post-processor that writes the tokens at both ends of a text, as the file says."""
    wanted = {
        "bos_token_id": begins_with_token(file.metadata),
        "eos_token_id": file.metadata.get(f"{_PREFIX}add_eos_token", False),
    }
    numbers = [_token(file, key, len(tokens)) if add else None for key, add in wanted.items()]
    ends = [None if number is None else tokens[number] for number in numbers]
    if not any(ends):
        return

    def framed(name: str) -> list[dict[str, Any]]:
        parts: Iterable[Any] = (
            {"SpecialToken": {"id": ends[0], "type_id": 0}} if ends[0] else None,
            {"Sequence": {"id": name, "type_id": 0}},
            {"SpecialToken": {"id": ends[1], "type_id": 0}} if ends[1] else None,
        )
        return [part for part in parts if part]

    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": framed("A"),
        "pair": [*framed("A"), *framed("B")],
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
            for token in ends
            if token
        },
    }


def _token(file: Described, key: str, count: int) -> int | None:
    number = file.metadata.get(f"{_PREFIX}{key}")
    return number if isinstance(number, int) and 0 <= number < count else None


def _strings(file: Described, key: str) -> list[str]:
    values = file.metadata.get(f"{_PREFIX}{key}")
    if not isinstance(values, (StringArray, list)):
        raise _lacking(file, key)
    return list(values)


def _numbers(file: Described, key: str, count: int, default: int | None) -> list[float]:
    """Read one number for each token; `default` for all where the file may be silent."""
    values = file.metadata.get(f"{_PREFIX}{key}")
    if values is None and default is not None:
        return [default] * count
    if not isinstance(values, np.ndarray) or len(values) != count or values.dtype.kind not in "iuf":
        raise _lacking(file, key)
    if not np.isfinite(values).all():
        raise _lacking(file, key)
    return values.tolist()


def _lacking(file: Described, key: str) -> GGUFError:
    return GGUFError(
        f"{file.path} has no usable {_PREFIX}{key}, which its tokenizer needs.",
        "Download or convert the file again, or use the model's Hugging Face folder.",
    )
