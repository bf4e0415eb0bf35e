"""The part of `fabric run` that writes text: --prompt and --chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.conversation import Conversation
from ..runtime.generate import Generation, GenerationOptions, load_adapters
from ..runtime.memory import peak_memory_mib
from ..runtime.protocols import Generates
from ..runtime.sampling import SamplingOptions
from ..runtime.tokenizer import load_tokenizer
from ..runtime.writer import NEW_TOKENS, Writer, check_room
from .engines import Engines
from .output import Output
from .run_options import unescape

FAREWELLS = ("/exit", "/quit", "exit", "quit")


def write(
    output: Output, bundle: Path, seed: int | None, values: dict[str, Any], engines: Engines
) -> dict[str, Any]:
    """Go on from each --prompt, or with --chat answer it as a message.

    Returns
    -------
    dict
        The keys that `--prompt --json` promises, finished_by and peak_memory_mib; of several
        prompts those keys of each, as answers.
    """
    prompts = [unescape(text) for text in values["prompts"]]
    opened = engines.open_bundle(bundle)
    options = _options(seed, values)
    answers: list[dict[str, Any]] = []
    for generation in _answers(prompts, opened, options, values, engines):
        _stream(output, generation)
        found = generation.result
        again = f", {found.reused_tokens} of the prompt's read before" if answers else ""
        output.aside(
            f"{found.tokens} tokens, {found.tokens_per_s:.0f} a second, "
            f"the first after {found.time_to_first_token_ms:.0f} ms{again}"
        )
        answers.append(found.to_json())
    memory = {"peak_memory_mib": peak_memory_mib()}
    return {**answers[0], **memory} if len(answers) == 1 else {"answers": answers, **memory}


def _answers(
    prompts: list[str],
    bundle: Bundle,
    options: GenerationOptions,
    values: dict[str, Any],
    engines: Engines,
) -> Iterator[Generation]:
    """Give a text to be written for each prompt; the one before has been written by then."""
    if values["chat"]:
        conversation = _conversation(bundle, options, values, engines)
        for prompt in prompts:
            generation = conversation.ask(prompt)
            yield generation
            conversation.keep(generation)
        return
    tokenizer = load_tokenizer(bundle)
    texts = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    for tokens in texts:
        asked = (values["capacity"], len(tokens), values["max_new_tokens"], values["slide"])
        check_room(bundle, *asked)
    writer = Writer(_engine(bundle, values, engines), tokenizer, options, slide=values["slide"])
    for tokens in texts:
        yield writer.begin(tokens)


def chat(
    output: Output, bundle: Path, seed: int | None, values: dict[str, Any], engines: Engines
) -> dict[str, Any]:
    """Talk until the person has had enough: Ctrl-D, Ctrl-C or /exit.

    Returns
    -------
    dict
        messages (role and content) and tokens (written by the model).
    """
    opened = engines.open_bundle(bundle)
    conversation = _conversation(opened, _options(seed, values), values, engines)
    if sys.stdin.isatty():
        # Gives the line that is typed a cursor and a history.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        output.aside("Say something. Ctrl-C stops an answer; /exit or Ctrl-D ends the chat.")
    tokens = 0
    while (question := _question()) is not None:
        if not question:
            continue
        answer = conversation.ask(question)
        with contextlib.suppress(KeyboardInterrupt):
            _stream(output, answer)
        conversation.keep(answer)
        tokens += len(answer.tokens)
    return {"messages": conversation.messages, "tokens": tokens}


def _question() -> str | None:
    """Ask for the next message; None when there will be no more."""
    is_terminal = sys.stdin.isatty()
    try:
        if is_terminal:
            print()
        text = input("> " if is_terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        if is_terminal:
            print()
        return None
    return None if text.lower() in FAREWELLS else text


def _conversation(
    bundle: Bundle, options: GenerationOptions, values: dict[str, Any], engines: Engines
) -> Conversation:
    """Start a chat; a model without a chat template is refused before its weights are read."""
    tokenizer = load_tokenizer(bundle)
    tokenizer.end_of_turn()
    engine = _engine(bundle, values, engines)
    return Conversation(engine, tokenizer, options, values["system"], values["slide"])


def _engine(bundle: Bundle, values: dict[str, Any], engines: Engines) -> Generates:
    """Open the model with all adapters that were named."""
    adapters = load_adapters(values["adapters"], bundle)
    return engines.write(bundle, adapters, values["capacity"])


def _options(seed: int | None, values: dict[str, Any]) -> GenerationOptions:
    """Take the options of writing out of the command's values."""
    return GenerationOptions(
        max_new_tokens=values["max_new_tokens"] or NEW_TOKENS,
        stop=tuple(unescape(text) for text in values["stop"]),
        sampling=SamplingOptions(
            temperature=values["temperature"],
            top_k=values["top_k"],
            top_p=values["top_p"],
            repetition_penalty=values["repetition_penalty"],
            seed=seed or 0,
        ),
    )


def _stream(output: Output, generation: Generation) -> None:
    """Print a text as it is written."""
    file = output.stream
    try:
        for piece in generation:
            file.write(piece)
            file.flush()
    finally:
        file.write("\n")
        file.flush()
