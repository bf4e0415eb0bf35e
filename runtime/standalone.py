"""Training and writing with the standard library's own command line: for devices.

``run.py`` in a bundle that brings its runtime along calls this; `fabric run` has the same options
and more comfort.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..targets import DEVICE_VARIABLE, FabricError
from .backends import devices
from .budget import inference_engine, training_engine
from .bundle import Bundle, open_bundle, read_manifest
from .config import TrainingConfig
from .conversation import Conversation
from .evaluate import evaluate_file
from .generate import GenerationOptions, load_adapters
from .progress import PlainReporter
from .sampling import SamplingOptions
from .tokenizer import load_tokenizer
from .trainer import configure
from .trainer import train as run_training
from .writer import NEW_TOKENS, Writer, check_room

EXIT_ERROR = 2
_NUMBERS = {"int": int, "float": float}


def main(bundle: Path, arguments: Sequence[str]) -> int:
    """Do what the command line says with a bundle.

    Returns
    -------
    int
        The process's exit status: 0, 2 for what a person can mend, 130 after Ctrl-C.
    """
    values = _parser().parse_args(arguments)
    if values.device:
        os.environ[DEVICE_VARIABLE] = values.device
    try:
        if values.devices:
            result: Any = devices(read_manifest(bundle)["target"]["device"])
        elif values.train is not None:
            result = _train(open_bundle(bundle), values)
        elif values.eval is not None:
            result = _evaluate(open_bundle(bundle), values)
        else:
            result = _write(open_bundle(bundle), values)
    except FabricError as error:
        print(f"error: {error.cause}\n{error.remedy}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_ERROR)
    except KeyboardInterrupt:
        return 130
    if values.json or values.devices:
        print(json.dumps(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Train a LoRA adapter with this bundle, or write text."
    )
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--train", metavar="FILE", help="train an adapter on FILE")
    work.add_argument("--eval", metavar="FILE", help="measure loss and perplexity on FILE")
    work.add_argument("--prompt", metavar="TEXT", help=r"go on from TEXT; \n is a line break")
    work.add_argument("--devices", action="store_true", help="list the bundle's kind of devices")
    parser.add_argument("--chat", action="store_true", help="answer --prompt as a message")
    parser.add_argument("--adapter", action="append", metavar="FOLDER", help="FOLDER or FOLDER:0.5")
    parser.add_argument("--device", metavar="NAME", help="opencl:1, or a part of a device's name")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    _add_writing(parser.add_argument_group("writing"))
    _add_training(parser.add_argument_group("training"))
    return parser


def _add_writing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-new-tokens", type=int, default=None)
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT")
    group.add_argument("--system", metavar="TEXT")
    group.add_argument("--capacity", type=int, default=None)
    group.add_argument("--slide", action=argparse.BooleanOptionalAction, default=False)


def _add_training(group: argparse._ArgumentGroup) -> None:
    """Add an option for every setting of a training."""
    group.add_argument("--resume", action="store_true")
    group.add_argument("--config", type=Path, metavar="FILE")
    for field in fields(TrainingConfig):
        if field.name in ("train", "adapter"):
            continue
        name, kind = "--" + field.name.replace("_", "-"), str(field.type)
        if kind == "bool":
            group.add_argument(name, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(name, type=_NUMBERS.get(kind, str))


def _train(bundle: Bundle, values: argparse.Namespace) -> dict[str, Any]:
    flags = {field.name: getattr(values, field.name, None) for field in fields(TrainingConfig)}
    flags["adapter"] = next(iter(values.adapter or ()), None)
    config = configure(flags, values.config, resume=values.resume)
    reporter = PlainReporter(sys.stderr)
    result = run_training(
        bundle, training_engine, config, resume=values.resume, reporter=reporter
    ).to_json()
    print(f"adapter: {result['adapter']}", file=sys.stderr)
    return result


def _evaluate(bundle: Bundle, values: argparse.Namespace) -> dict[str, Any]:
    found = evaluate_file(
        bundle,
        training_engine,
        Path(values.eval),
        adapter=next(iter(values.adapter or ()), ""),
        loss_on=values.loss_on or "auto",
        truncate=bool(values.truncate),
        skip_bad=bool(values.skip_bad),
    )
    print(f"loss {found.loss:.4f}, perplexity {found.perplexity:.2f}", file=sys.stderr)
    return found.to_json()


def _write(bundle: Bundle, values: argparse.Namespace) -> dict[str, Any]:
    sampling = SamplingOptions(
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        repetition_penalty=values.repetition_penalty,
        seed=values.seed or 0,
    )
    stop = tuple(_unescape(text) for text in values.stop)
    options = GenerationOptions(values.max_new_tokens or NEW_TOKENS, stop, sampling)
    tokenizer, prompt = load_tokenizer(bundle), _unescape(values.prompt)
    adapters = load_adapters(values.adapter or (), bundle)
    engine = inference_engine(bundle, adapters, capacity=values.capacity)
    slide = values.slide
    if values.chat:
        writing = Conversation(engine, tokenizer, options, values.system, slide).ask(prompt)
    else:
        tokens = tokenizer.encode_prompt(prompt)
        check_room(bundle, values.capacity, len(tokens), values.max_new_tokens, slide)
        writing = Writer(engine, tokenizer, options, slide=slide).begin(tokens)
    stream = sys.stderr if values.json else sys.stdout
    for piece in writing:
        print(piece, end="", file=stream, flush=True)
    print(file=stream)
    return {**writing.result.to_json(), "token_ids": writing.tokens}


def _unescape(text: str) -> str:
    r"""Turn the two characters \n and \t, as a shell passes them on, into what they mean."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
