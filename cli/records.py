"""`fabric records`: what tuning found, shown, merged, and taken from one machine to another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..targets import FabricError
from .common import SEED_UNUSED, command, option
from .output import Output

if TYPE_CHECKING:
    from ..compiler.tuning.records import Record

_TARGET = option(
    "--target", default="cpu", show_default=True, metavar="NAME",
    help="The records of this target; `fabric targets` lists the names.",
)  # fmt: skip
_OUTPUT = option(
    "-o", "--output", "path", type=click.Path(path_type=Path), required=True,
    help="The file to write.",
)  # fmt: skip


@click.group("records", context_settings={"help_option_names": ["-h", "--help"]})
def records_group() -> None:
    """Show the records of `fabric tune`, and take them to other machines."""


def _known(target: str) -> tuple[str, list[tuple[str, Record]], list[str]]:
    """Return a target's name, its records with where each is from, and what was damaged."""
    from ..compiler.tuning.records import best, load, shipped_file, user_file
    from .targets import chosen_target

    name = chosen_target(target).name
    shipped, notes = load(shipped_file(name))
    own, more = load(user_file(name))
    found = best([*shipped, *own])
    came_along = set(map(str, (record.to_json() for record in shipped)))
    where = ("package" if str(record.to_json()) in came_along else "own" for record in found)
    return name, list(zip(where, found, strict=True)), [*notes, *more]


@command(
    "show",
    examples=["fabric records show", "fabric records show --target adreno --json"],
    seed_help=SEED_UNUSED,
)
@_TARGET
def show_command(output: Output, target: str, seed: int | None) -> None:
    """List the records for a target: a user's own, and those that came with fabric."""
    name, found, notes = _known(target)
    for note in notes:
        output.say(f"Note: {note}")
    if not found:
        output.say(f"There are no records for {name}. Make some with: fabric tune MODEL")
    table = output.table("kernel", "gain", "default", "device", "from", numbers=(1, 2))
    for where, record in found:
        gain = f"{1 / record.ratio:.2f} x" if record.decisions else "none"
        device = record.device.title
        table.add_row(
            record.kernel.title, gain, f"{record.default_seconds * 1e3:.3f} ms", device, where
        )
    if found:
        output.show(table)
    output.result(
        {
            "target": name,
            "records": [{**record.to_json(), "from": where} for where, record in found],
            "notes": notes,
        }
    )


@command(
    "merge",
    examples=["fabric records merge laptop.jsonl server.jsonl -o both.jsonl"],
    seed_help=SEED_UNUSED,
)
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@_OUTPUT
def merge_records_command(
    output: Output, files: tuple[Path, ...], path: Path, seed: int | None
) -> None:
    """Write one file with the best record of each kernel and device from several."""
    from ..compiler.tuning.records import best, load_strictly

    found = best(record for file in files for record in load_strictly(file))
    _write(path, found)
    output.say(f"[bold]{path}[/] holds {len(found)} records.")
    output.result({"file": path, "records": len(found)})


@command(
    "export",
    examples=[
        "fabric records export -o mine.jsonl",
        "fabric records export --target vulkan:auto --least-gain 1.02 -o gpu.jsonl",
    ],
    seed_help=SEED_UNUSED,
)
@_TARGET
@option(
    "--least-gain", type=click.FloatRange(min=0.0), default=0.0, show_default=True,
    help="Leave out records that gained less, such as 1.02.",
)  # fmt: skip
@_OUTPUT
def export_records_command(
    output: Output, target: str, least_gain: float, path: Path, seed: int | None
) -> None:
    """Write a target's records to a file, to be imported elsewhere."""
    name, known, notes = _known(target)
    found = [record for _, record in known if 1 / record.ratio >= least_gain]
    if not found:
        raise FabricError(f"There are no records for {name}.", "Make some with: fabric tune MODEL")
    for note in notes:
        output.say(f"Note: {note}")
    _write(path, found)
    output.say(f"[bold]{path}[/] holds {len(found)} records for {name}.")
    output.result({"file": path, "target": name, "records": len(found)})


@command("import", examples=["fabric records import mine.jsonl"], seed_help=SEED_UNUSED)
@click.argument("file", type=click.Path(path_type=Path))
def import_records_command(output: Output, file: Path, seed: int | None) -> None:
    """Add the records of a file to one's own; `fabric compile` then uses them.

    Those of another device are used where this one has none, and the compiler says so.
    """
    from ..compiler.tuning.records import best, load, load_strictly, user_file

    found = best(load_strictly(file))
    for target in sorted({record.target for record in found}):
        own, notes = load(user_file(target))
        for note in notes:
            output.say(f"Note: {note}")
        _write(user_file(target), best([*own, *(r for r in found if r.target == target)]))
    output.say(f"{len(found)} records are now your own.")
    output.result({"records": len(found), "targets": sorted({record.target for record in found})})


def _write(path: Path, records: Iterable[Record]) -> None:
    from ..compiler.tuning.store import write

    write(path, (record.to_json() for record in records))


for _command in (
    show_command,
    merge_records_command,
    export_records_command,
    import_records_command,
):
    records_group.add_command(_command)
