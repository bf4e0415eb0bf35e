"""Tokenizers survive the way into a GGUF file and out, and mean what programs make of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bitfabric.models import open_model
from bitfabric.models.gguf import GGUFError, export_gguf, open_gguf
from bitfabric.models.gguf.tokenizer import merges_of_scores, read_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from ..reference.gguf_files import tiny, write_hf

CORPUS = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
TEXTS = [
    "Fabric fine-tunes and runs BitNet models, doesn't it? 1234567 times.",
    "two  spaces, a\ttab\nand a line\r\n\n  indented",
    "Größe, Привет, 你好 and 😀 </s> <|turn|> after",
    "I'LL, we've, HE'D",
    "",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 700


def byte_level(kind: str) -> Tokenizer:
    """Train a byte-level BPE that cuts words as `kind` says."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "llama-bpe")
    before: list[Any] = {
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
        "refact": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
    }[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, step]) if before else step
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 5,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return framed(tokenizer)


def sentencepiece() -> Tokenizer:
    """Train a BPE of the kind that Llama 2 has: bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 5,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    document = json.loads(tokenizer.to_str())
    # The trainer marks the bytes as special; in a published tokenizer they are ordinary.
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] in SPECIAL]
    return framed(Tokenizer.from_str(json.dumps(document)))


def framed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def exported(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """Write a model with that tokenizer to a GGUF file."""
    folder = write_hf(tiny("llama", hidden=64, ffn=96, vocab_size=VOCABULARY), tmp_path / "hf")
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }} é"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(open_model(str(folder)), tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("kind", ["llama-bpe", "refact", "gpt-2", "llama"])
def test_a_tokenizer_comes_back(tmp_path: Path, kind: str) -> None:
    original = sentencepiece() if kind == "llama" else byte_level(kind)
    file = exported(original, tmp_path)
    metadata = open_gguf(file).metadata
    assert metadata["tokenizer.ggml.pre" if kind != "llama" else "tokenizer.ggml.model"] == kind
    files = open_model(str(file)).tokenizer_files
    back = Tokenizer.from_buffer(files["tokenizer.json"])
    for text in TEXTS:
        want = original.encode(text)
        assert back.encode(text).ids == want.ids
        assert back.decode(want.ids) == original.decode(want.ids)
        assert back.decode(want.ids, skip_special_tokens=False) == original.decode(
            want.ids, skip_special_tokens=False
        )
    assert files["chat_template.jinja"].decode() == "{{ messages }} é"
    assert json.loads(files["special_tokens.json"]) == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("kind", ["llama-bpe", "gpt-2", "llama"])
def test_transformers_reads_the_same_tokens_from_our_file(tmp_path: Path, kind: str) -> None:
    file = exported(sentencepiece() if kind == "llama" else byte_level(kind), tmp_path)
    metadata = open_gguf(file).metadata
    described = {
        theirs: list(value) if not isinstance(value := metadata[f"tokenizer.ggml.{ours}"], str)
        else value
        for ours, theirs in {
            "model": "tokenizer_type", "pre": "pre_tokenizer_type", "tokens": "tokens",
            "scores": "scores", "token_type": "token_type", "merges": "merges",
        }.items()
        if f"tokenizer.ggml.{ours}" in metadata
    }  # fmt: skip
    theirs, _ = convert_gguf_tokenizer("llama", described)
    mine = Tokenizer.from_buffer(open_model(str(file)).tokenizer_files["tokenizer.json"])
    for text in TEXTS:
        if kind == "llama" and "</s>" in text:
            # After such a token llama.cpp writes SentencePiece's space, and transformers does not.
            continue
        # Whether <s> is written stands elsewhere in their tokenizer.
        want = theirs.encode(text, add_special_tokens=False).ids
        assert mine.encode(text, add_special_tokens=False).ids == want, text


def test_merges_follow_the_scores() -> None:
    scores = {"a": -9.0, "b": -9.0, "c": -9.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    assert merges_of_scores(scores) == [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]


def described(**values: Any) -> Any:
    """A file's metadata, with a small byte-level tokenizer in it."""
    ready = {
        "model": "gpt2",
        "tokens": ["<s>", "a", "b", "ab"],
        "token_type": np.array([3, 1, 1, 1], np.int32),
        "merges": ["a b"],
        "pre": "gpt-2",
        "bos_token_id": 0,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in {**ready, **values}.items()}
    return SimpleNamespace(path=Path("m.gguf"), metadata=metadata)


@pytest.mark.parametrize(
    ("values", "begins"),
    [
        ({}, False),
        ({"add_bos_token": True}, True),
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"model": "llama", "scores": np.zeros(4, np.float32)}, True),
        ({"model": "llama", "scores": np.zeros(4, np.float32), "add_bos_token": False}, False),
    ],
)
def test_whether_a_text_begins_with_a_token(values: dict[str, Any], begins: bool) -> None:
    files = read_tokenizer(described(**values), 4)
    ids = Tokenizer.from_buffer(files["tokenizer.json"]).encode("ab").ids
    assert (ids[0] == 0) == begins


def test_without_a_name_only_llama_3s_vocabulary_tells_the_pre_tokenizer() -> None:
    tokens = [*(f"t{i}" for i in range(128000)), "<|begin_of_text|>", "a", "b", "ab"]
    file = described(tokens=tokens, token_type=np.ones(len(tokens), np.int32), pre=None)
    document = json.loads(read_tokenizer(file, len(tokens))["tokenizer.json"])
    assert document["model"]["ignore_merges"]
    assert document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == LLAMA3
    tokens[128000] = "something"
    with pytest.raises(GGUFError, match="no pre-tokenizer"):
        read_tokenizer(file, len(tokens))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["model"].update(type="Unigram"), "it is a Unigram"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "in a way of its own"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "in a way of its own"),
        (lambda d: d["model"]["vocab"].update(beyond=VOCABULARY), "beyond the 700"),
    ],
)
def test_a_tokenizer_that_gguf_has_no_name_for(tmp_path: Path, change: Any, named: str) -> None:
    document = json.loads(byte_level("gpt-2").to_str())
    change(document)
    tokenizer = SimpleNamespace(to_str=lambda: json.dumps(document))
    with pytest.raises(GGUFError, match=named):
        exported(tokenizer, tmp_path)  # type: ignore[arg-type]
    assert not (tmp_path / "m.gguf").exists()
