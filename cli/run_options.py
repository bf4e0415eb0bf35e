"""The options of `fabric run`, by the work they belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from .common import option
from .options import Size

Function = TypeVar("Function", bound=Callable[..., Any])

WORK = "What to do (one of --train, --eval, --prompt, --chat)"
TRAINING = "Training (each also in a --config file)"
WRITING = "Writing text"

_work = partial(option, section=WORK)
_training = partial(option, section=TRAINING, default=None)
_writing = partial(option, section=WRITING)

_WORK = (
    _work("--train", type=str, default=None, metavar="FILE", help="Train an adapter on FILE."),
    _work(
        "--eval",
        "evaluate",
        type=click.Path(path_type=Path),
        default=None,
        metavar="FILE",
        help="Measure loss and perplexity on FILE.",
    ),
    _work(
        "--prompt",
        "prompts",
        multiple=True,
        metavar="TEXT",
        help=r"Go on from TEXT; \n is a line break. Of several, what they begin with alike is read "
        "once.",
    ),
    _work("--chat", is_flag=True, help="Talk; with --prompt, answer that one message."),
    _work(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="FOLDER",
        help="The adapter: --train writes it, the others read it, also from a .gguf file. "
        "FOLDER:0.5 weighs it; several add up.",
    ),
    _work(
        "--device",
        default=None,
        metavar="NAME",
        help="Which device, where the bundle is for one: vulkan:1, or a part of its name; or one "
        "that is elsewhere: rpc://HOST:PORT/KEY, see `fabric device serve`.",
    ),
    _work(
        "--memory-budget",
        type=Size(),
        default=None,
        help="Most memory that it may take.  [default: that of the compilation, in training]",
    ),
)

# Names and defaults are those of runtime's TrainingConfig; None means "not given here".
_TRAINING = (
    _training("--resume", is_flag=True, default=False, help="Go on where this adapter's run was."),
    _training(
        "--init-adapter", metavar="ADAPTER", help="Start from this adapter, a folder or .gguf file."
    ),
    _training("--eval-data", metavar="FILE", help="Validate on FILE, before and while training."),
    _training("--config", type=click.Path(path_type=Path), help="A TOML file of these settings."),
    _training("--epochs", type=float, help="How often all rows are seen.  [default: 3]"),
    _training("--max-steps", type=int, help="Steps at most.  [default: no limit]"),
    _training("--batch", type=int, help="Rows of a step.  [default: 4]"),
    _training("--accumulate", type=int, help="Batches that make one step.  [default: 1]"),
    _training("--context", type=int, help="Tokens of a row.  [default: all that were compiled]"),
    _training("--learning-rate", type=float, help="The highest learning rate.  [default: 5e-4]"),
    _training("--scheduler", metavar="NAME", help="constant, linear or cosine.  [default: cosine]"),
    _training("--warmup-ratio", type=float, help="Share of warm-up steps.  [default: 0.05]"),
    _training("--weight-decay", type=float, help="AdamW's decoupled decay.  [default: 0]"),
    _training("--clip-norm", type=float, help="Largest gradient norm, 0 for none.  [default: 1]"),
    _training("--eval-every", type=int, help="Steps between validations.  [default: an epoch]"),
    _training("--early-stop", type=int, help="Stop after so many validations without gain."),
    _training("--save-every", type=int, help="Steps between checkpoints.  [default: 50]"),
    _training(
        "--loss-on", metavar="PART", help="all, completion or auto, which depends on the data."
    ),
    _training("--pack/--no-pack", help="Let several short documents share a row."),
    _training("--truncate/--no-truncate", help="Cut documents that are too long."),
    _training("--skip-bad/--no-skip-bad", help="Leave unreadable records out."),
    _training("--log-dir", metavar="FOLDER", help="Write TensorBoard's event files there."),
)

_WRITING = (
    _writing("--max-new-tokens", type=click.IntRange(min=1), default=None,
             help="Length of an answer at most.  [default: 256, or what there is room for]"),
    _writing("--temperature", type=click.FloatRange(min=0.0), default=0.0, show_default=True,
             help="0 takes the likeliest token; 1 draws as the model says."),
    _writing("--top-k", type=click.IntRange(min=0), default=0, show_default=True,
             help="Draw among the K likeliest tokens; 0 for all."),
    _writing("--top-p", type=click.FloatRange(0.0, 1.0), default=1.0, show_default=True,
             help="Draw among the likeliest that together have this probability."),
    _writing("--repetition-penalty", type=click.FloatRange(min=1.0), default=1.0,
             show_default=True, help="Above 1, what was said becomes less likely."),
    _writing("--stop", multiple=True, metavar="TEXT",
             help=r"End where TEXT would come; \n is a line break. May be repeated."),
    _writing("--system", default=None, metavar="TEXT", help="The system message of a --chat."),
    _writing("--capacity", type=click.IntRange(min=16), default=None,
             help="Tokens that fit into one conversation.  [default: 2048, or the model's limit]"),
    _writing("--slide/--no-slide", default=False,
             help="Go on when that is full: the prompt stays, the middle is forgotten."),
)  # fmt: skip


def run_options(function: Function) -> Function:
    """Give a command all the options above, in their order."""
    for decorate in reversed((*_WORK, *_TRAINING, *_WRITING)):
        function = decorate(function)
    return function


def unescape(text: str) -> str:
    r"""Turn the two characters \n and \t, as a shell passes them on, into what they mean."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
