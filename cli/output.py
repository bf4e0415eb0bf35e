"""Where a command's words and its result go: for people, or for scripts with --json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXIT_INTERRUPTED = 130


@dataclass
class Output:
    """Where a command's words and its result go.

    For people, words go to standard output. With --json they go to standard error and the result
    becomes the last line of standard output, so that a script can read it without looking.

    Parameters
    ----------
    json : bool
        Whether the result is printed as one JSON object.
    debug : bool
        Whether a failure shows its traceback.
    """

    json: bool = False
    debug: bool = False
    _printed: bool = field(default=False, repr=False)

    @property
    def stream(self) -> TextIO:
        """Where words go."""
        return sys.stderr if self.json else sys.stdout

    @cached_property
    def console(self) -> Console:
        """The same for rich, which is imported here, when something is first said."""
        from rich.console import Console

        # A pipe gets more room than the 80 columns that rich assumes where there is no terminal.
        width = None if self.stream.isatty() else 120
        return Console(file=self.stream, width=width, highlight=False, emoji=False)

    def say(self, text: str = "") -> None:
        """Print one paragraph; `text` may hold rich's markup such as [bold]."""
        self.console.print(text, soft_wrap=True)

    def hint(self, text: str) -> None:
        """Say what to try next, to a person; a script that asked for --json knows."""
        if not self.json:
            self.say(text)

    def aside(self, text: str) -> None:
        """Print a remark to standard error, which is no part of what was asked for."""
        click.secho(text, dim=True, err=True)

    def table(self, *headings: str, numbers: Sequence[int] = ()) -> Table:
        """Make a table that is quiet on a terminal and plain columns in a pipe.

        Parameters
        ----------
        headings : str
            One per column; all empty for a table without a heading.
        numbers : sequence of int
            The columns that are aligned to the right.
        """
        from rich.table import Table

        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="dim",
            show_header=any(headings),
        )
        for index, heading in enumerate(headings):
            is_number = index in numbers
            table.add_column(
                heading,
                justify="right" if is_number else "left",
                no_wrap=is_number or index == 0,
                overflow="fold",
            )
        return table

    def show(self, table: Table) -> None:
        """Print a table; in a pipe without the blanks that fill up its last column."""
        if self.console.is_terminal:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip(), file=self.stream)

    def result(self, values: dict[str, Any]) -> None:
        """Print `values` as the last line of standard output if --json was given."""
        if self.json and not self._printed:
            self._printed = True
            print(json.dumps(_plain(values), ensure_ascii=False), flush=True)

    def failure(self, cause: str, remedy: str, code: int) -> None:
        """Print an error's two lines to standard error, and for --json the object that says so."""
        if code == EXIT_INTERRUPTED:
            click.echo(cause, err=True)
        else:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {cause}", err=True)
        click.echo(f"  {remedy}", err=True)
        self.result({"error": cause, "remedy": remedy})


def _plain(value: Any) -> Any:
    """Turn `value` into what JSON has: no NaN, no numpy, no paths."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)
