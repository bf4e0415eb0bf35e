"""What every command shares: --json, --seed, --debug, and errors a person can act on."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from ..targets import FabricError
from .output import EXIT_INTERRUPTED, Output

SEED_UNUSED = "Makes no difference here; every command takes it, which is easier on scripts."
EXIT_ERROR = 2
EXIT_BUG = 1


class CommandEnded(Exception):
    """A command that this one ran has failed, and has told why.

    Parameters
    ----------
    code : int
        Its exit status, which becomes ours.
    result : dict
        What it printed for --json.
    """

    def __init__(self, code: int, result: dict[str, Any]) -> None:
        super().__init__(f"exit status {code}")
        self.code = code
        self.result = result


class FabricOption(click.Option):
    """An option that stands under a heading in the help and names its value by one letter.

    Parameters
    ----------
    section : str
        The heading.
    """

    def __init__(self, *args: Any, section: str = "Options", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section
        if self.metavar is None and not self.is_flag:
            if isinstance(self.type, click.types.IntParamType):
                self.metavar = "N"
            elif isinstance(self.type, click.types.FloatParamType):
                self.metavar = "X"

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Leave the range out of the help; an error message tells it to whoever needs it."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


option = partial(click.option, cls=FabricOption)


class FabricCommand(click.Command):
    """A command whose failures are two lines for people: the cause and the remedy."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the order in which these first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                section = getattr(parameter, "section", "Options")
                sections.setdefault(section, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Give every run of the command an `Output` of its own."""
        extra["obj"] = Output()
        return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end the process with 0, 2 (an error), 130 (Ctrl-C) or 1 (a bug)."""
        output: Output = ctx.obj
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except CommandEnded as ended:
            output.result(ended.result)
            ctx.exit(ended.code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(EXIT_BUG)
        except Exception as error:
            if output.debug:
                raise
            cause, remedy, code = explain(error)
            output.failure(cause, remedy, code)
            ctx.exit(code)


def explain(error: Exception) -> tuple[str, str, int]:
    """What to tell a person about `error`.

    Returns
    -------
    cause, remedy : str
        One sentence each.
    code : int
        The exit status: 2 for what a person can mend, 130 for Ctrl-C, 1 for a bug of ours.
    """
    if isinstance(error, FabricError):
        return error.cause, error.remedy, getattr(error, "exit_code", EXIT_ERROR)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"The disk is full{where}.", "Free some space and run the command again.", EXIT_ERROR
    if isinstance(error, OSError) and error.filename is not None:
        reason = error.strerror or str(error)
        return (
            f"{error.filename}: {reason.lower()}.",
            "Check that the path is right and that you may read and write there.",
            EXIT_ERROR,
        )
    if isinstance(error, MemoryError):
        return (
            "This computer has no memory left for that.",
            "Try a smaller model, --context or --batch; `fabric estimate` tells what fits.",
            EXIT_ERROR,
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return (
        f"Fabric has met a bug of its own: {type(error).__name__}: {lines[0]}",
        "Run the same command with --debug for the traceback, and please report it.",
        EXIT_BUG,
    )


def command(
    name: str, *, examples: Sequence[str], seed_help: str = "Seed of everything random."
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command of `function(output, seed, **its own options)`.

    Parameters
    ----------
    name : str
        What is typed after `fabric`.
    examples : sequence of str
        Command lines shown at the end of the help.
    seed_help : str
        What --seed does here.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.pass_obj
        def callback(output: Output, **options: Any) -> None:
            function(output, **options)

        # Decorators run from the last to the first, so the options stand in reverse.
        own = reversed(getattr(function, "__click_params__", []))
        return FabricCommand(
            name,
            callback=callback,
            params=[*own, *_shared_options(seed_help)],
            help=inspect.getdoc(function),
            epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples),
        )

    return decorate


def _shared_options(seed_help: str) -> list[click.Parameter]:
    """The options that every command has."""

    def note(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        setattr(ctx.ensure_object(Output), str(parameter.name), value)

    return [
        FabricOption(["--seed"], type=click.IntRange(min=0), default=None, help=seed_help),
        FabricOption(
            ["--json"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=note,
            help="Make the last line of standard output one JSON object.",
        ),
        FabricOption(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=note,
            help="Show the traceback of an error.",
        ),
    ]
