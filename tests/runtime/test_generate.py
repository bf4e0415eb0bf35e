"""Text comes as it is written, ends where it should, and a chat keeps what it has read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.config import make_config
from bitfabric.runtime.conversation import Conversation, common_prefix
from bitfabric.runtime.generate import (
    Generation,
    GenerationError,
    GenerationOptions,
    StopFilter,
    load_adapters,
)
from bitfabric.runtime.sampling import SamplingOptions
from bitfabric.runtime.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from bitfabric.runtime.trainer import train
from bitfabric.runtime.writer import Writer, check_room

from .toy import VOCAB, ToyBundle, ToyInferenceEngine, ToyTrainingEngine


class Scripted:
    """An engine that says a given text, whatever it is asked."""

    def __init__(self, tokens: Sequence[int], capacity: int = 1000) -> None:
        self.tokens = list(tokens)
        self.capacity = capacity
        self.position = 0
        self.read: list[list[int]] = []
        self.said = 0

    def reset(self) -> None:
        self.position = 0

    def rewind(self, position: int) -> None:
        assert position <= self.position
        self.position = position

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self.read.append(list(tokens))
        self.position += len(tokens)
        return self._next()

    def decode(self, token: int) -> np.ndarray:
        assert token == self.tokens[self.said - 1]
        self.position += 1
        return self._next()

    def _next(self) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.tokens[self.said]] = 1
        self.said += 1
        return logits


@pytest.fixture
def tokenizer(bundle: ToyBundle) -> Tokenizer:
    return load_tokenizer(bundle)


def write(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = (), limit: int = 100
) -> tuple[list[str], Generation]:
    tokens = [*tokenizer.codec.encode(text)[0], tokenizer.end[0]]
    generation = Generation(Scripted(tokens), tokenizer, [1, 50], GenerationOptions(limit, stop))
    return list(generation), generation


def test_text_streams_by_whole_characters_until_the_model_ends(tokenizer: Tokenizer) -> None:
    pieces, generation = write(tokenizer, "naïve 東京!")
    assert pieces == list("naïve 東京!")
    result = generation.result
    assert result.text == "naïve 東京!"
    assert result.finished_by == "end"
    assert result.tokens == len("naïve 東京!".encode()) + 1
    assert list(result.to_json())[:4] == [
        "text",
        "tokens",
        "tokens_per_s",
        "time_to_first_token_ms",
    ]
    assert result.tokens_per_s > 0
    assert result.time_to_first_token_ms > 0


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("yes.\nQ: more", ("\nQ:",), "yes."),
        ("yes.\n\nQ", ("\nQ:",), "yes.\n\nQ"),
        ("aab", ("ab",), "a"),
        ("abababac", ("abac",), "abab"),
        ("one END two STOP", ("STOP", "END"), "one "),
        ("é東", ("東",), "é"),
        ("stop at once", ("s",), ""),
        ("nothing here", ("absent", ""), "nothing here"),
    ],
)
def test_stop_texts_are_found_across_tokens_and_never_shown(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], kept: str
) -> None:
    pieces, generation = write(tokenizer, text, stop)
    assert "".join(pieces) == kept == generation.result.text
    assert "" not in pieces
    stopped = any(s and s in text for s in stop)
    assert generation.result.finished_by == ("stop" if stopped else "end")


def test_a_stop_filter_holds_back_no_more_than_it_must() -> None:
    chosen = StopFilter(["\n\nQ:"])
    assert [chosen.push(c) for c in "a\n\nb\n"] == ["a", "", "", "\n\nb", ""]
    assert chosen.flush() == "\n"


def test_the_length_is_limited(tokenizer: Tokenizer) -> None:
    pieces, generation = write(tokenizer, "x" * 50, limit=7)
    assert "".join(pieces) == "x" * 7
    assert (generation.result.tokens, generation.result.finished_by) == (7, "length")
    _, cut = write(tokenizer, "é" * 50, limit=3)
    assert cut.result.text == "é\ufffd"


def test_a_full_cache_ends_the_text(tokenizer: Tokenizer) -> None:
    engine = Scripted(tokenizer.codec.encode("x" * 50)[0], capacity=8)
    generation = Generation(engine, tokenizer, [1, 2, 3, 4, 5], GenerationOptions(100))
    assert "".join(generation) == "xxxx"
    assert generation.result.finished_by == "capacity"
    assert engine.position == 8


def test_a_full_cache_keeps_the_prompt_and_the_newer_half(
    bundle: ToyBundle, tokenizer: Tokenizer
) -> None:
    prompt, options = tokenizer.encode_prompt("the "), GenerationOptions(60)
    engine = ToyInferenceEngine(bundle, capacity=24)
    generation = Generation(engine, tokenizer, prompt, options, end=(), prefix=len(prompt))
    list(generation)
    assert (generation.result.tokens, generation.result.finished_by) == (60, "length")
    assert engine.cache == generation.cached[: engine.position]
    assert engine.cache[: len(prompt)] == prompt
    # What is written is what a text writes that was never longer.
    text, cached = generation.tokens, [*prompt]
    fresh = ToyInferenceEngine(bundle, capacity=1000)
    for token in text:
        fresh.reset()
        assert int(np.argmax(fresh.prefill(cached))) == token
        cached.append(token)
        if len(cached) > 24:
            cached[len(prompt) :] = cached[-((24 - len(prompt)) // 2) :]


def test_prompts_share_what_they_begin_with(bundle: ToyBundle, tokenizer: Tokenizer) -> None:
    def text(writer: Writer, prompt: str) -> tuple[list[int], int]:
        generation = writer.begin(tokenizer.encode_prompt(prompt))
        list(generation)
        return generation.tokens, generation.result.reused_tokens

    prompts = ["the red green ", "the red blue ", "the red blue "]
    options = GenerationOptions(9)
    writer = Writer(ToyInferenceEngine(bundle), tokenizer, options)
    shared = [text(writer, prompt) for prompt in prompts]
    alone = [text(Writer(ToyInferenceEngine(bundle), tokenizer, options), p) for p in prompts]
    assert [tokens for tokens, _ in shared] == [tokens for tokens, _ in alone]
    first, second = (tokenizer.encode_prompt(prompt) for prompt in prompts[:2])
    wanted = [0, common_prefix(first, second), len(second) - 1]
    assert [reused for _, reused in shared] == wanted
    assert wanted[1] >= len("the red ") - 1


def test_a_chat_forgets_its_oldest_messages(chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    engine = ToyInferenceEngine(chat_bundle, capacity=160)
    chat = Conversation(engine, tokenizer, GenerationOptions(4), system="answer", slide=True)
    for turn in range(8):
        generation = chat.ask(f"is it {turn}?")
        list(generation)
        chat.keep(generation)
        assert engine.position <= 160
    assert len(chat.messages) == 17
    held = tokenizer.codec.decode(engine.cache)
    assert "answer" in held
    assert "is it 7?" in held
    assert "is it 0?" not in held


def test_more_than_the_model_attends_over_is_refused(bundle: ToyBundle) -> None:
    def refused(*asked: Any) -> str:
        with pytest.raises(GenerationError) as found:
            check_room(SimpleNamespace(config={"max_context": 1000}), *asked)  # type: ignore[arg-type]
        return f"{found.value.cause} {found.value.remedy}"

    assert "has 1000 tokens, and this model attends over 1000" in refused(None, 1000, None, False)
    assert "up to 1000 with --capacity" in refused(64, 64, None, True)
    assert "--max-new-tokens 990, or let" in refused(None, 10, 991, False)
    check_room(SimpleNamespace(config={"max_context": 1000}), None, 10, 991, True)  # type: ignore[arg-type]
    check_room(SimpleNamespace(config={"max_context": 1000}), None, 999, None, False)  # type: ignore[arg-type]


def test_what_cannot_be_generated_is_refused(tokenizer: Tokenizer) -> None:
    engine = Scripted([5], capacity=4)
    with pytest.raises(GenerationError, match="has 4 tokens, and there is room for 3"):
        Generation(engine, tokenizer, [1] * 4, GenerationOptions())
    with pytest.raises(GenerationError, match="empty"):
        Generation(engine, tokenizer, [], GenerationOptions())
    with pytest.raises(GenerationError, match="--max-new-tokens is 0"):
        Generation(engine, tokenizer, [1], GenerationOptions(0))


def test_the_seed_fixes_the_text(bundle: ToyBundle, tokenizer: Tokenizer) -> None:
    def text(seed: int) -> str:
        options = GenerationOptions(30, sampling=SamplingOptions(1.0, seed=seed))
        engine = ToyInferenceEngine(bundle)
        return "".join(Generation(engine, tokenizer, tokenizer.encode_prompt("the"), options))

    assert text(1) == text(1) != text(2)


def test_adapters_change_the_text_by_their_weights(
    bundle: ToyBundle, tokenizer: Tokenizer, tmp_path: Path, train_file: Path
) -> None:
    settings = {"train": train_file, "adapter": tmp_path / "a", "learning_rate": 0.05}
    train(bundle, ToyTrainingEngine, make_config({**settings, "epochs": 30.0, "batch": 8}))

    def logits(*names: str) -> np.ndarray:
        adapters = load_adapters([f"{tmp_path}/{name}" for name in names], bundle)
        return ToyInferenceEngine(bundle, adapters).prefill(tokenizer.encode_prompt("the "))

    base, whole = logits(), logits("a")
    assert np.abs(whole - base).max() > 0.1
    np.testing.assert_allclose(logits("a:0.5", "a:0.5"), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits("a:0.25") - base, 0.25 * (whole - base), atol=1e-4)
    engine = ToyInferenceEngine(bundle, load_adapters([f"{tmp_path}/a"], bundle))
    prompt = tokenizer.encode_prompt("the ")
    text = "".join(Generation(engine, tokenizer, prompt, GenerationOptions(20)))
    assert set(text) <= set("the red green blue seven ten")


def test_a_chat_reads_only_what_is_new(chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    im_end = 4
    first, second = (tokenizer.codec.encode(text)[0] for text in ("yes", "no"))
    engine = Scripted([*first, im_end, *second, im_end])
    chat = Conversation(engine, tokenizer, GenerationOptions(50), system="answer")
    generation = chat.ask("is it?")
    assert "".join(generation) == "yes"
    assert chat.keep(generation) == "yes"
    generation = chat.ask("is it not?")
    assert "".join(generation) == "no"
    chat.keep(generation)
    assert [message["content"] for message in chat.messages] == [
        *("answer", "is it?", "yes"),
        *("is it not?", "no"),
    ]
    everything = tokenizer.codec.encode(tokenizer.chat.render(chat.messages[:4], answer_next=True))
    assert [*engine.read[0], *first, *engine.read[1]] == everything[0]


def test_a_chat_reads_again_from_where_its_cache_differs(chat_bundle: ToyBundle) -> None:
    tokenizer = load_tokenizer(chat_bundle)
    text = tokenizer.codec.encode("  yes  ")[0]
    engine = Scripted([*text, 4, *text, 4])
    chat = Conversation(engine, tokenizer, GenerationOptions(50))
    generation = chat.ask("is it?")
    list(generation)
    assert chat.keep(generation) == "yes"
    list(chat.ask("is it not?"))
    rendered = tokenizer.chat.render(chat.messages, answer_next=True)
    wanted = tokenizer.codec.encode(rendered)[0]
    cached = [*engine.read[0], *text]
    shared = common_prefix(cached, wanted)
    # The question itself is not read again.
    assert len(engine.read[0]) <= shared < len(cached)
    assert engine.read[1] == wanted[shared:]


def test_a_model_without_a_template_cannot_chat(bundle: ToyBundle, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        Conversation(ToyInferenceEngine(bundle), tokenizer, GenerationOptions())
