"""Data files, a bundle of the toy model (which needs no compiler), and small real tokenizers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from .toy import VOCAB, ToyBundle, toy_config

SPECIAL = ["<pad>", "<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def bundle() -> ToyBundle:
    return ToyBundle()


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    words = ["red", "green", "blue", "seven", "ten"]
    records = [{"text": f"the {a} {b}"} for a in words for b in words if a != b]
    return write_jsonl(tmp_path / "train.jsonl", records)


@pytest.fixture
def eval_file(tmp_path: Path) -> Path:
    records = [{"text": f"the {a} {a}"} for a in ("red", "green", "blue", "seven", "ten")]
    return write_jsonl(tmp_path / "validation.jsonl", records)


def byte_level_tokenizer() -> LibraryTokenizer:
    """A byte-level BPE as GPT-2's and Llama 3's, with a few words merged."""
    tokenizer = LibraryTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is no, the answer is yes: user assistant"], trainer)
    return tokenizer


def sentencepiece_tokenizer() -> LibraryTokenizer:
    """A BPE with byte fallback, a prepended space and a begin token, as Llama 2's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*"abcdefghijklmno", "▁no"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("n", "o"), ("▁", "no")]
    vocabulary["no"] = len(vocabulary)
    tokenizer = LibraryTokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.fixture
def chat_bundle(tmp_path: Path) -> ToyBundle:
    """A bundle with a byte-level tokenizer and ChatML."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "special_tokens.json").write_text(json.dumps(special))
    return dataclasses.replace(
        ToyBundle(), tokenizer_path=folder / "tokenizer.json", config=toy_config(), context=128
    )
