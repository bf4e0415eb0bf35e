"""`fabric quickstart`: the whole story once, on this computer, offline."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from ..targets import FabricError
from .child import run_fabric
from .common import CommandEnded, command, option
from .output import EXIT_INTERRUPTED, Output

BLOCKS = "▁▂▃▄▅▆▇█"
MARKER = "quickstart.json"
MADE_BY = "fabric quickstart"
QUESTION = "Q: Does bracing improve dynamic stability in chronic ankle instability subjects?\nA:"
BUNDLE = "nano.fabric"
ADAPTER = "adapter"
DATA = ("train.jsonl", "validation.jsonl")
RUN = ("run", f"{BUNDLE}/module.so")
TALK = (
    *(*RUN, "--prompt", QUESTION, "--max-new-tokens", "48", "--stop", "\n"),
    *("--repetition-penalty", "1.1"),
)
EVALUATE = (*RUN, "--eval", DATA[1])
TRAIN = (
    *(*RUN, "--train", DATA[0], "--eval-data", DATA[1], "--adapter", ADAPTER, "--resume"),
    *("--pack", "--batch", "1", "--learning-rate", "1e-3"),
)


@command(
    "quickstart",
    examples=["fabric quickstart", "fabric quickstart --output ~/first-model --seed 7"],
    seed_help="Seed of the adapter, the order of the data and the answers.",
)
@option(
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("fabric-quickstart"),
    show_default=True,
    help="Where everything is written.",
)
def quickstart_command(output: Output, folder: Path, seed: int | None) -> None:
    """See it all work in a few minutes, without a network.

    Compiles nano, a small BitNet that comes with fabric; asks it a medical question; fine-tunes
    it on 264 such questions with a LoRA adapter; and asks again. Every step is an ordinary fabric
    command, shown before it runs, so that you can run it yourself.
    """
    start = time.monotonic()
    story = Story(output, folder, seed or 0)
    story.prepare()
    output.say(
        f"\n[bold]A model of your own, made on this computer.[/] All of it lands in {folder}/."
    )

    story.chapter("Compile", "The model becomes a bundle: machine code for this kind of computer.")
    compiled = story.compile()
    story.chapter("Ask", "What does it know before? Its loss on 33 questions, then one answer.")
    before = story.fabric(*EVALUATE)
    answer_before = story.fabric(*TALK)["text"]
    story.chapter("Train", "A LoRA adapter learns from 264 questions; the model stays as it is.")
    trained = story.fabric(*TRAIN)
    story.chapter("Ask again", "The same questions, now with the adapter.")
    after = story.fabric(*EVALUATE, "--adapter", ADAPTER)
    answer_after = story.fabric(*TALK, "--adapter", ADAPTER)["text"]

    story.finish()
    result = {
        "folder": folder,
        "bundle": folder / BUNDLE,
        "adapter": folder / ADAPTER,
        "curve": story.curve(),
        "eval_loss_before": before["loss"],
        "eval_loss": after["loss"],
        "answer_before": answer_before,
        "answer_after": answer_after,
        "seconds": time.monotonic() - start,
        "compile": compiled,
        "training": trained,
    }
    _summary(output, result)
    output.result(result)


@dataclass
class Story:
    """The folder of a quickstart and the commands that fill it.

    Parameters
    ----------
    output : Output
        Where the story is told.
    folder : Path
        What is filled; every command runs inside it.
    seed : int
        Given to every command.
    """

    output: Output
    folder: Path
    seed: int
    _chapters: int = field(default=0, repr=False)

    def prepare(self) -> None:
        """Make the folder, or take up an earlier quickstart's; never touch anyone else's.

        Raises
        ------
        FabricError
            Where the folder holds something that no quickstart made.
        """
        marker = self.folder / MARKER
        if self.folder.exists() and not self.folder.is_dir():
            raise FabricError(
                f"{self.folder} is a file, not a folder.", "Choose another folder with --output."
            )
        if marker.is_file():
            if self._earlier(marker) != self._state("running"):
                self._clear()
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise FabricError(
                f"{self.folder} holds files that fabric quickstart did not make, "
                "so they are left alone.",
                "Choose another folder with --output, or empty this one yourself.",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark("running")
        with as_file(files("bitfabric.examples") / "biomedqa") as source:
            for name in DATA:
                shutil.copyfile(source / name, self.folder / name)

    def chapter(self, title: str, text: str) -> None:
        """Announce the next part of the story."""
        self._chapters += 1
        self.output.say(f"\n[bold cyan]{self._chapters}  {title}[/]  {text}")

    def compile(self) -> dict[str, Any] | None:
        """Compile nano, unless an interrupted quickstart has done so; give the result, if any."""
        if (self.folder / BUNDLE / "manifest.json").is_file():
            self.output.say(f"{BUNDLE} is there already, from the quickstart that was stopped.")
            return None
        return self.fabric("compile", "nano", "--target", "cpu", "-o", BUNDLE)

    def fabric(self, *arguments: str) -> dict[str, Any]:
        """Run one fabric command in the folder, showing it first; give its JSON result."""
        line = (*arguments, "--seed", str(self.seed))
        try:
            return run_fabric(self.output, line, folder=self.folder, shown=arguments)
        except CommandEnded as ended:
            if ended.code == EXIT_INTERRUPTED:
                self.output.aside("Run fabric quickstart again: it goes on from here.")
            raise

    def curve(self) -> Path | None:
        """Find the picture of the loss curve beside the adapter."""
        pictures = sorted((self.folder / ADAPTER).glob("*.svg"))
        return pictures[0] if pictures else None

    def finish(self) -> None:
        """Note that the next quickstart here begins anew."""
        self._mark("done")

    def _state(self, state: str) -> dict[str, Any]:
        return {
            "made_by": MADE_BY,
            "version": version("bitfabric"),
            "seed": self.seed,
            "state": state,
        }

    def _mark(self, state: str) -> None:
        (self.folder / MARKER).write_text(json.dumps(self._state(state), indent=2) + "\n")

    @staticmethod
    def _earlier(marker: Path) -> dict[str, Any]:
        try:
            return json.loads(marker.read_text())
        except ValueError:
            return {}

    def _clear(self) -> None:
        """Remove what a finished quickstart, or one of another version or seed, has made."""
        for name in (BUNDLE, ADAPTER):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _summary(output: Output, result: dict[str, Any]) -> None:
    """Print what has changed, where it lies, and what to type next."""
    from rich.markup import escape

    folder, losses = result["folder"], _training_losses(result["folder"] / ADAPTER)
    output.say(f"\n[bold green]Done[/] in {result['seconds'] / 60:.1f} minutes.\n")
    table = output.table("", "")
    table.add_row("training loss", f"[cyan]{sparkline(losses, 40)}[/]")
    table.add_row(
        "validation loss",
        f"{result['eval_loss_before']:.3f} before, [bold]{result['eval_loss']:.3f}[/] after",
    )
    for word in ("before", "after"):
        table.add_row(f"answer {word}", escape(" ".join(result[f"answer_{word}"].split())))
    output.show(table)

    output.say(f"\n[bold]What you have now[/], in {folder}/")
    files = output.table("", "")
    files.add_row(f"  {BUNDLE}", "the compiled model")
    files.add_row(f"  {ADAPTER}", "your adapter, in PEFT's format")
    if result["curve"]:
        files.add_row(f"  {result['curve'].relative_to(folder)}", "the loss curve, for a browser")
    output.show(files)

    output.say("\n[bold]What to try next[/]")
    for line in (
        *_activation(),
        f"cd {folder}",
        f"fabric run {BUNDLE} --chat --adapter {ADAPTER}",
        rf'fabric run {BUNDLE} --prompt "Q: Is tea good?\nA:" --adapter {ADAPTER} --temperature 1',
        f"fabric run {BUNDLE} --train your-own.jsonl --adapter mine",
        f"fabric inspect {BUNDLE}",
        "fabric estimate random:1B",
    ):
        output.console.print(f"  {line}", markup=False, soft_wrap=True)


def _activation() -> list[str]:
    """The line that gives a person the command, where it runs from an environment not active."""
    is_environment = sys.prefix != sys.base_prefix
    if not is_environment or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return []
    return [f"source {shlex.quote(sys.prefix)}/bin/activate"]


def _training_losses(adapter: Path) -> list[float]:
    """Read the loss of every step from metrics.jsonl."""
    entries = map(json.loads, (adapter / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as a line of at most `width` blocks, each the mean of its neighbours."""
    size = max(1, math.ceil(len(values) / width))
    means = [
        sum(values[begin : begin + size]) / len(values[begin : begin + size])
        for begin in range(0, len(values), size)
    ]
    if not means:
        return ""
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((mean - low) / ((high - low) or 1.0) * 7)] for mean in means)
