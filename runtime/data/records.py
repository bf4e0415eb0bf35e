"""Reading data files: every record with its place, every fault with file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...targets import FabricError
from ..chat import Message, check_messages
from ..files import read_error

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_PIECE_CHARACTERS = 1 << 16


class DataError(FabricError):
    """A data file, or one record of it, cannot be used."""


@dataclass(frozen=True)
class Record:
    """One record of a data file.

    Exactly one of `text`, `prompt` with `completion`, and `messages` is given.

    Parameters
    ----------
    place : str
        ``file:line``, for messages to people.
    text : str or None
        A document.
    prompt, completion : str or None
        What is given and what is to be learned.
    messages : list of mapping or None
        A conversation, each message with `role` and `content`.
    """

    place: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[Message] | None = None


@dataclass
class BadRecords:
    """What happens to records that cannot be used: the first one stops the run, or all count.

    Parameters
    ----------
    skip : bool
        Whether to go on without them.
    count : int
        How many there were.
    first : str
        What was wrong with the first.
    """

    skip: bool = False
    count: int = 0
    first: str = field(default="")

    def meet(self, place: str, error: FabricError) -> None:
        """Note a bad record.

        Raises
        ------
        DataError
            With its place, unless bad records are skipped.
        """
        cause = f"{place}: {error.cause}"
        if not self.skip:
            raise DataError(
                cause, f"{error.remedy} Or leave such records out with --skip-bad."
            ) from error
        self.count += 1
        self.first = self.first or cause


def read_records(path: Path, bad: BadRecords) -> Iterator[Record]:
    """Read a data file, one record at a time.

    JSONL (`.jsonl`, `.ndjson`, `.json`, or a file that begins with "{") has one JSON object a
    line: with `messages`, else with `prompt` and `completion`, else with `text`; other fields are
    left alone. Any other file is plain text, one long document.

    Parameters
    ----------
    path : Path
    bad : BadRecords
        What to do about bad records.

    Raises
    ------
    DataError
        At the first bad record, unless they are skipped.
    FileError
        Where the file cannot be read.
    """
    try:
        if _is_jsonl(path):
            yield from _read_jsonl(path, bad)
        else:
            yield Record(str(path), text=_read_text(path))
    except OSError as error:
        raise read_error(path, error) from error


def _is_jsonl(path: Path) -> bool:
    if path.suffix.lower() in JSON_SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text (byte {error.start}).", "Convert the file to UTF-8."
        ) from error


def _read_jsonl(path: Path, bad: BadRecords) -> Iterator[Record]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not data.strip():
                continue
            place = f"{path}:{number}"
            try:
                record = _parse(data, place)
            except FabricError as error:
                bad.meet(place, error)
            else:
                yield record


def _parse(line: bytes, place: str) -> Record:
    """Read one line of JSONL."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError("the line is no UTF-8 text.", "Convert the file to UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the line is not valid JSON ({error}).", "Write one JSON object a line."
        ) from error
    if not isinstance(value, dict):
        raise DataError("the line is no JSON object.", "Write one JSON object a line.")
    _check_characters(value, line)
    if "messages" in value:
        return Record(place, messages=check_messages(value["messages"]))
    if "prompt" in value and "completion" in value:
        return Record(
            place, prompt=_string(value, "prompt"), completion=_string(value, "completion")
        )
    if "text" in value:
        return Record(place, text=_string(value, "text"))
    found = ", ".join(f"`{name}`" for name in list(value)[:6]) or "nothing"
    raise DataError(
        f"the record has {found}, and not `text`, `prompt` with `completion`, or `messages`.",
        "Give each record one of these.",
    )


def _check_characters(value: dict[str, Any], line: bytes) -> None:
    """Refuse half a surrogate pair, which JSON can write and UTF-8 cannot."""
    if b"\\ud" not in line.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "the record holds half of a surrogate pair (\\ud800 to \\udfff).",
            "Write the character as UTF-8, or both halves.",
        ) from error


def _string(value: dict[str, Any], name: str) -> str:
    """Give a field that must be text."""
    if not isinstance(value[name], str):
        raise DataError(
            f"`{name}` is {json.dumps(value[name])[:40]}, not text.", f"Make `{name}` a string."
        )
    return str(value[name])


def pieces_of(text: str) -> Iterator[str]:
    """Cut a long text at line ends into pieces of about 64 Ki characters.

    A tokenizer's working memory is many times its text, so a book is encoded piece by piece. Words
    hardly ever cross a line end, so the tokens differ from those of the whole at the cuts at most.
    """
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS:
        # The newline goes with what follows, as tokenizers that join spaces to words have it.
        cut = text.rfind("\n", begin + 1, begin + _PIECE_CHARACTERS)
        cut = cut if cut > begin else begin + _PIECE_CHARACTERS
        yield text[begin:cut]
        begin = cut
    yield text[begin:]
