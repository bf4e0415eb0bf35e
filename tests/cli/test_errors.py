"""Every failure is two lines and an exit status; nothing a person did wrong is a traceback."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import click
import pytest
from bitfabric.cli.common import command, explain
from bitfabric.cli.output import Output
from bitfabric.targets import FabricError
from click.testing import CliRunner, Result

from .helpers import fabric


def run_raising(error: BaseException, *arguments: str) -> Result:
    """Run a command that raises `error`."""

    @command("fail", examples=["fabric fail"])
    def fail(output: Output, seed: int | None) -> None:
        """Fail."""
        raise error

    return CliRunner().invoke(fail, list(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "nano", "--target", "toaster"),
        ("compile", "no/such/folder"),
        ("run", "nowhere.fabric", "--prompt", "Hello"),
        ("run", "nowhere.fabric", "--train", "x.jsonl"),
        ("inspect", "nowhere.fabric"),
        ("estimate", "random:5T"),
    ],
)
def test_a_mistake_is_told_in_two_lines(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = fabric(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    cause, remedy = done.stderr.splitlines()
    assert cause.startswith("error: ")
    assert remedy.startswith("  ")
    assert done.stdout == ""


def test_with_json_the_last_line_is_the_error(tmp_path: Path) -> None:
    done = fabric("inspect", "nowhere.fabric", "--json", cwd=tmp_path)
    assert done.returncode == 2
    told = json.loads(done.stdout.splitlines()[-1])
    assert "nowhere.fabric" in told["error"]
    assert told["remedy"]


def test_with_debug_the_traceback_is_shown(tmp_path: Path) -> None:
    done = fabric("inspect", "nowhere.fabric", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "BundleError" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x.fabric"),
        ("run", "x.fabric", "--prompt", "a", "--train", "b"),
        ("run", "x.fabric", "--prompt", "a", "--max-new-tokens", "0"),
        ("compile", "nano", "--lora-modules", "q_proj,x_proj"),
        ("compile",),
        ("bake", "a-cake"),
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = fabric(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_altered_bundle_is_refused_by_the_name_of_its_file(broken_bundle: Path) -> None:
    for arguments in (("inspect", broken_bundle), ("run", broken_bundle, "--prompt", "Hello")):
        done = fabric(*arguments)
        assert done.returncode == 2
        assert "weights/" in done.stderr.splitlines()[0]


def test_a_fault_in_the_data_names_file_and_line(bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine, and long enough to learn from"}\n{"text": 7}\n')
    done = fabric("run", bundle, "--train", bad, "--adapter", tmp_path / "out")
    assert done.returncode == 2
    assert f"{bad}:2" in done.stderr.splitlines()[0]


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.fabric").mkdir()
    (tmp_path / "thesis.fabric" / "chapter1.txt").write_text("years of work")
    done = fabric("compile", "nano", "-o", "thesis.fabric", cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "thesis.fabric" / "chapter1.txt").read_text() == "years of work"


def test_ctrl_c_exits_with_130() -> None:
    assert run_raising(KeyboardInterrupt()).exit_code == 130


def test_an_error_may_bring_its_own_status() -> None:
    class Stopped(FabricError):
        exit_code = 130

    done = run_raising(Stopped("It stopped.", "Go on."))
    assert done.exit_code == 130
    assert "error" not in done.stderr


def test_a_bug_of_ours_says_so_and_exits_with_1() -> None:
    done = run_raising(ZeroDivisionError("division by zero"), "--json")
    assert done.exit_code == 1
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "--debug" in done.stderr
    assert "ZeroDivisionError" in json.loads(done.stdout.splitlines()[-1])["error"]


def test_a_usage_error_inside_a_command_stays_one() -> None:
    assert run_raising(click.UsageError("no")).exit_code == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "out/x"), "out/x: permission denied"),
        (MemoryError(), "no memory left"),
    ],
)
def test_what_the_system_refuses_is_explained(error: Exception, words: str) -> None:
    cause, remedy, code = explain(error)
    assert words in cause
    assert remedy
    assert code == 2
