"""Data files become the documents that were meant, and every fault has its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bitfabric.runtime.data import Corpus, CorpusOptions, DataError, read_corpus
from bitfabric.runtime.files import FileError
from bitfabric.runtime.tokenizer import Tokenizer, load_tokenizer
from bitfabric.targets import FabricError

from .conftest import write_jsonl
from .toy import ToyBundle

BEGIN, END = 1, 2
TALK = [
    {"role": "user", "content": "the answer?"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "is it?"},
    {"role": "assistant", "content": "yes"},
]


def documents(corpus: Corpus) -> list[tuple[list[int], list[bool]]]:
    return [
        (corpus.tokens[begin:end].tolist(), corpus.learned[begin:end].tolist())
        for begin, end in zip(corpus.bounds[:-1], corpus.bounds[1:], strict=True)
    ]


def learned_text(tokenizer: Tokenizer, corpus: Corpus) -> list[str]:
    return [
        tokenizer.codec.decode([t for t, mark in zip(tokens, marks, strict=True) if mark])
        for tokens, marks in documents(corpus)
    ]


def read(path: Path, tokenizer: Tokenizer, context: int = 200, **options: Any) -> Corpus:
    return read_corpus(path, tokenizer, CorpusOptions(context, **options))


@pytest.fixture
def tokenizer(bundle: ToyBundle) -> Tokenizer:
    return load_tokenizer(bundle)


def test_a_text_is_learned_whole_between_begin_and_end(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    corpus = read(write_jsonl(tmp_path / "a.jsonl", [{"text": "ab", "other": 1}]), tokenizer)
    assert documents(corpus) == [([BEGIN, 97 + 3, 98 + 3, END], [False, True, True, True])]
    assert corpus.positions.tolist() == [3]


def test_of_a_prompt_with_completion_the_completion_is_learned(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Q: x\nA:", "completion": " no"}])
    corpus = read(path, tokenizer)
    tokens, marks = documents(corpus)[0]
    assert tokenizer.codec.decode(tokens) == "Q: x\nA: no"
    assert learned_text(tokenizer, corpus) == [" no"]
    assert (tokens[0], tokens[-1], marks[-1]) == (BEGIN, END, True)
    everything = read(path, tokenizer, loss_on="all")
    assert learned_text(tokenizer, everything) == ["Q: x\nA: no"]


def test_of_messages_the_assistants_turns_are_learned(
    tmp_path: Path, chat_bundle: ToyBundle
) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TALK}])
    corpus = read(path, tokenizer)
    tokens, marks = documents(corpus)[0]
    assert tokens[0] == 3  # the template's own <|im_start|>: no begin token is added to it
    learned = [t for t, mark in zip(tokens, marks, strict=True) if mark]
    assert tokenizer.codec.decode(learned) == "no\nyes\n"
    assert learned.count(4) == 2  # <|im_end|> is learned, or the model would not stop
    everything = read(path, tokenizer, loss_on="all")
    assert documents(everything)[0][1] == [False] + [True] * (len(tokens) - 1)


def test_plain_text_is_split_into_windows_that_lose_no_token(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    text = "0123456789" * 7 + "\n" + "naïve " * 30_000
    path = tmp_path / "book.txt"
    path.write_text(text, "utf-8")
    corpus = read(path, tokenizer, context=64)
    windows = documents(corpus)
    assert all(len(tokens) == 65 for tokens, _ in windows[:-1])
    assert all(marks == [False] + [True] * (len(tokens) - 1) for tokens, marks in windows)
    joined = windows[0][0][:1] + [token for tokens, _ in windows for token in tokens[1:]]
    assert joined == [*tokenizer.encode_prompt(text), END]
    assert corpus.windowed == 1


def test_a_long_text_is_encoded_as_if_it_were_whole(tmp_path: Path, chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    text = "the answer is no, the answer is yes\n" * 5000
    path = tmp_path / "book.txt"
    path.write_text(text)
    corpus = read(path, tokenizer, context=10**6)
    assert corpus.tokens.tolist() == [*tokenizer.encode_prompt(text), END]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{not json", "not valid JSON"),
        (b"[1, 2]", "no JSON object"),
        (b'{"text": "caf\xe9"}', "no UTF-8 text"),
        (b'{"text": 5}', "`text` is 5, not text"),
        (b'{"text": ""}', "the text is empty"),
        (b'{"content": "x"}', "has `content`, and not `text`"),
        (b'{"prompt": "x"}', "has `prompt`, and not `text`"),
        (b'{"prompt": "x", "completion": null}', "`completion` is null"),
        (b'{"messages": "hi"}', "no list of messages"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no chat template"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_record_is_named_or_skipped(
    tmp_path: Path, tokenizer: Tokenizer, line: bytes, words: str
) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"text": "good"}).encode()
    path.write_bytes(b"\n".join([good, b"", line, good]) + b"\n")
    with pytest.raises(DataError, match=words) as caught:
        read(path, tokenizer)
    assert caught.value.cause.startswith(f"{path}:3: ")
    assert "--skip-bad" in caught.value.remedy
    corpus = read(path, tokenizer, skip_bad=True)
    assert (len(corpus), corpus.skipped) == (2, 1)
    assert corpus.first_bad.startswith(f"{path}:3: ")


def test_a_conversation_without_an_answer_is_a_bad_record(
    tmp_path: Path, chat_bundle: ToyBundle
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TALK[:1]}])
    with pytest.raises(DataError, match=r"a.jsonl:1: nothing to learn"):
        read(path, load_tokenizer(chat_bundle))


def test_a_long_record_is_refused_or_truncated(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [{"prompt": "x" * 10, "completion": "y" * n} for n in (5, 9, 10, 40)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=r"a.jsonl:3: the record has 21 tokens.*context is 20"):
        read(path, tokenizer, context=20)
    corpus = read(path, tokenizer, context=20, truncate=True)
    assert corpus.positions.tolist() == [16, 20, 20, 20]
    assert corpus.truncated == 2
    assert learned_text(tokenizer, corpus)[3] == "y" * 10
    path = write_jsonl(path, [{"prompt": "x" * 30, "completion": "y"}])
    with pytest.raises(DataError, match=r"nothing to learn is left.*within the context"):
        read(path, tokenizer, context=20, truncate=True)


def test_a_text_has_no_completion(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="a text without a completion"):
        read(path, tokenizer, loss_on="completion")


def test_an_empty_file_is_one_clear_sentence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataError, match="holds no record to learn from"):
        read(path, tokenizer)
    path.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"1 were skipped, the first because .*the text is empty"):
        read(path, tokenizer, skip_bad=True)
    with pytest.raises(FileError, match="could not be read"):
        read(tmp_path / "missing.jsonl", tokenizer)
    with pytest.raises(FabricError):
        read(tmp_path, tokenizer)


def test_jsonl_is_known_by_its_name_or_its_first_character(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for name in ("a.json", "a.ndjson", "no-suffix", "strange.dat"):
        path = write_jsonl(tmp_path / name, [{"text": "one"}, {"text": "two"}])
        assert len(read(path, tokenizer)) == 2
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path, tokenizer)) == 2
    (tmp_path / "a.md").write_text("just { words }")
    assert len(read(tmp_path / "a.md", tokenizer)) == 1


def test_a_template_that_writes_the_date_reads_the_same_tomorrow(
    tmp_path: Path, chat_bundle: ToyBundle
) -> None:
    assert chat_bundle.tokenizer_path is not None
    template = chat_bundle.tokenizer_path.parent / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d') }} " + template.read_text())
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TALK}])
    os.utime(path, (86_400.0, 86_400.0))
    tokenizer = load_tokenizer(chat_bundle)
    text = tokenizer.codec.decode(documents(read(path, tokenizer))[0][0])
    assert text.startswith("1970-01-02 user")
