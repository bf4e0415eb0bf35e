"""The files of a Hugging Face folder that a model needs to read and write text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError
from .safetensors_files import read_json

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens.json"


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read the tokenizer, the chat template and the special tokens' strings.

    Parameters
    ----------
    folder : pathlib.Path
        A Hugging Face folder. The template is ``chat_template.jinja``, or the entry (of several,
        the one called ``default``) in ``tokenizer_config.json``.

    Returns
    -------
    dict of str to bytes
        As `Checkpoint.tokenizer_files`; empty for a folder without any tokenizer.

    Raises
    ------
    CheckpointError
        Where the only tokenizer is a SentencePiece model, or a file is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        if (folder / "tokenizer.model").is_file():
            raise CheckpointError(
                f"{folder} has a SentencePiece tokenizer.model but no {TOKENIZER}.",
                "Convert it with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
        return {}
    read_json(folder / TOKENIZER)
    files = {TOKENIZER: (folder / TOKENIZER).read_bytes()}
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if (folder / CHAT_TEMPLATE).is_file():
        files[CHAT_TEMPLATE] = (folder / CHAT_TEMPLATE).read_bytes()
    elif template := _template(settings.get("chat_template")):
        files[CHAT_TEMPLATE] = template.encode()
    tokens = {key: _token(settings.get(key)) for key in ("bos_token", "eos_token")}
    files[SPECIAL_TOKENS] = json.dumps(tokens).encode()
    return files


def _template(value: Any) -> str | None:
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return value


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value
