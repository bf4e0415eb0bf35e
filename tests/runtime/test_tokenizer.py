"""Tokens, the text they stand for, and text that comes token by token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bitfabric.runtime.codec import ByteCodec, Codec, ModelCodec, TokenizerError
from bitfabric.runtime.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

from .conftest import byte_level_tokenizer, sentencepiece_tokenizer
from .toy import VOCAB, ToyBundle, toy_config

TEXTS = [
    "the answer is no",
    " leading and trailing ",
    "café – naïve, 東京, 👩‍👩‍👧 and\n\nlines\tand tabs",
    "no no",
    "",
]


@pytest.fixture(params=["byte_level", "sentencepiece", "bytes"])
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> Codec:
    if request.param == "bytes":
        return ByteCodec(VOCAB)
    make = byte_level_tokenizer if request.param == "byte_level" else sentencepiece_tokenizer
    make().save(str(tmp_path / "tokenizer.json"))
    return ModelCodec(tmp_path / "tokenizer.json", VOCAB)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(codec: Codec, text: str) -> None:
    tokens, spans = codec.encode(text)
    assert len(tokens) == len(spans)
    assert codec.decode(tokens) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_the_same_text_and_never_half_a_character(codec: Codec, text: str) -> None:
    stream = StreamDecoder(codec)
    tokens = codec.encode(text)[0]
    pieces = [stream.push(token) for token in tokens]
    assert "".join([*pieces, stream.flush()]) == codec.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)
    # It is a stream: nothing but a character's own bytes ever waits.
    given = 0
    for index, piece in enumerate(pieces):
        given += len(piece)
        whole = codec.decode(tokens[: index + 1])
        assert given >= len(whole.rstrip("\ufffd"))


def test_a_stream_of_broken_characters_goes_on() -> None:
    codec = ByteCodec(VOCAB)
    stream = StreamDecoder(codec)
    broken = [0xE2 + codec.offset] * 40
    pieces = [stream.push(token) for token in [*broken, *codec.encode("fine")[0]]]
    text = "".join([*pieces, stream.flush()])
    assert text.endswith("fine")
    assert any("\ufffd" in piece for piece in pieces[:40])


def test_half_a_character_at_the_end_is_told_as_such() -> None:
    codec = ByteCodec(VOCAB)
    stream = StreamDecoder(codec)
    tokens = codec.encode("é")[0][:1]
    assert stream.push(tokens[0]) == ""
    assert stream.flush() == "\ufffd"


def test_bytes_leave_the_first_tokens_free_and_fit_any_vocabulary() -> None:
    assert ByteCodec(32002).encode("A")[0] == [65 + 3]
    assert max(ByteCodec(256).encode("\u00ff")[0]) < 256
    assert ByteCodec(32002).decode([68, 1, 31000, 69]) == "A\ufffdB"
    with pytest.raises(TokenizerError, match="cannot hold all bytes"):
        ByteCodec(255)


@pytest.mark.parametrize("text", ["the answer is no", "東京 café"])
def test_marks_follow_the_pieces(codec: Codec, text: str) -> None:
    tokenizer = Tokenizer(codec)
    pieces = [("the answer", False), (f" {text}", True), ("\nis", False), (" no", True)]
    tokens, marks = tokenizer.encode_marked(pieces)
    assert tokens == codec.encode("".join(piece for piece, _ in pieces))[0]
    marked = [token for token, mark in zip(tokens, marks, strict=True) if mark]
    assert codec.decode(marked).strip() == f"{text} no"


def test_a_token_over_the_border_is_learned(codec: Codec) -> None:
    tokens, marks = Tokenizer(codec).encode_marked([("is ", False), ("no", True)])
    learned = codec.decode([t for t, mark in zip(tokens, marks, strict=True) if mark])
    assert learned.strip() == "no"


def test_a_byte_level_model_begins_with_its_configured_token(chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    assert tokenizer.begin == (1,)
    assert tokenizer.end == (2,)
    assert tokenizer.encode_prompt("no")[0] == 1
    assert tokenizer.has_chat


def test_a_post_processor_says_what_begins_a_document(tmp_path: Path) -> None:
    sentencepiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    bundle = ToyBundle(tokenizer_path=tmp_path / "tokenizer.json")
    bundle.config = {**toy_config(), "bos_token_id": None}
    assert load_tokenizer(bundle).begin == (1,)
    assert load_tokenizer(bundle).encode_prompt("no")[:1] == [1]


def test_a_model_without_a_tokenizer_works_on_bytes(bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(bundle)
    tokens = tokenizer.encode_prompt("naïve")
    assert tokens[0] == 1
    assert tokenizer.codec.decode(tokens) == "naïve"
    with pytest.raises(TokenizerError, match="no chat template"):
        _ = tokenizer.chat


def test_a_tokenizer_of_another_model_is_refused(chat_bundle: ToyBundle) -> None:
    small = dataclasses.replace(chat_bundle, config={**toy_config(), "vocab_size": 280})
    with pytest.raises(TokenizerError, match="the model has 280"):
        load_tokenizer(small)
    assert chat_bundle.tokenizer_path is not None
    chat_bundle.tokenizer_path.write_text("{}")
    with pytest.raises(TokenizerError, match="no tokenizer that"):
        load_tokenizer(chat_bundle)


def test_the_end_of_a_turn_is_found_from_the_template(chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    assert tokenizer.end_of_turn() == (2, 4)  # <|end|>, and ChatML's <|im_end|>
