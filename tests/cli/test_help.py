"""What `--help` promises, and how fast it comes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import fields

import click
import pytest
from bitfabric.cli import main
from bitfabric.cli.run_options import TRAINING
from bitfabric.runtime.config import TrainingConfig

from .helpers import fabric

COMMANDS = sorted(main.commands)


def test_the_commands_are_those_of_the_readme() -> None:
    assert COMMANDS == [
        "adapter", "bench", "compile", "device", "devices", "doctor", "estimate", "export",
        "inspect", "merge", "models", "quickstart", "records", "run", "targets", "tune",
    ]  # fmt: skip


def leaves(group: click.Group = main, before: str = "") -> dict[str, click.Command]:
    """Every command that does something, by what is typed: groups are taken apart."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found.update(leaves(command, f"{before}{name} "))
        else:
            found[f"{before}{name}"] = command
    return found


LEAVES = leaves()


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_shows_an_example_and_the_shared_options(name: str) -> None:
    shown = fabric(*name.split(), "--help").stdout
    assert f"\n    fabric {name}" in shown
    for option in ("--json", "--seed", "--debug", "--help"):
        assert option in shown


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_says_what_it_does(name: str) -> None:
    options = [p for p in LEAVES[name].params if isinstance(p, click.Option)]
    assert [option.opts for option in options if not option.help] == []


def test_help_needs_neither_tvm_nor_numpy_and_comes_at_once() -> None:
    code = (
        "import sys; from bitfabric.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('tvm', 'numpy', 'torch', 'rich') if name in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert done.stdout.splitlines()[-1] == "[]"
    assert seconds < 2.0  # about 0.15 s on an idle machine; a compiler import alone takes longer


def training_options() -> dict[str, click.Option]:
    """The options of `fabric run` that are settings of a training."""
    return {
        str(option.name): option
        for option in main.commands["run"].params
        if getattr(option, "section", "") == TRAINING and option.name not in ("resume", "config")
    }


def test_every_setting_of_a_training_has_an_option_and_the_reverse() -> None:
    elsewhere = {"train", "adapter", "seed"}
    settings = {field.name for field in fields(TrainingConfig)} - elsewhere
    assert set(training_options()) == settings


def test_the_defaults_in_the_help_are_those_of_the_training() -> None:
    for name, option in training_options().items():
        told = re.search(r"\[default: ([\d.e-]+)]", option.help or "")
        if told and name != "epochs":  # 0 stands for 3, or for what --max-steps takes
            assert float(told[1]) == getattr(TrainingConfig, name), name
        assert option.default is None, name
