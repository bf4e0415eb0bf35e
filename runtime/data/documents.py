"""Records to documents: tokens, and which of them are to be learned."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...targets import FabricError
from ..tokenizer import Tokenizer
from .records import BadRecords, DataError, Record, pieces_of, read_records

LOSS_ON = ("auto", "all", "completion")


@dataclass(frozen=True)
class Corpus:
    """Documents one after another in flat arrays.

    A document of n tokens takes n - 1 positions: its last token is only ever a label.

    Parameters
    ----------
    tokens : numpy.ndarray
        int32 [total].
    learned : numpy.ndarray
        bool [total]: whether the token is to be predicted. Never true for a document's first.
    bounds : numpy.ndarray
        int64 [documents + 1]: document d is ``tokens[bounds[d]:bounds[d + 1]]``.
    skipped : int
        Bad records left out.
    first_bad : str
        What was wrong with the first of them.
    windowed : int
        Documents that were split because they are longer than the context.
    truncated : int
        Documents of which only the beginning was kept.
    """

    tokens: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    bounds: npt.NDArray[np.int64]
    skipped: int = 0
    first_bad: str = ""
    windowed: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions that each document takes in a row, int64 [documents]."""
        return np.diff(self.bounds) - 1

    def fingerprint(self) -> str:
        """Hash everything that is learned from, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for values in (self.tokens, self.learned, self.bounds):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class CorpusOptions:
    """How a data file becomes documents.

    Parameters
    ----------
    context : int
        Positions of a row; a longer document does not fit.
    loss_on : str
        ``all`` tokens, the ``completion`` (what the assistant wrote), or ``auto``: the completion
        where a record has one, else everything.
    truncate : bool
        Whether to keep the beginning of a prompt with completion, or a conversation, that is
        longer than the context; otherwise it is a bad record. Texts are split into windows
        either way, which loses nothing but what stands before each window.
    skip_bad : bool
        Whether to leave bad records out instead of stopping at the first.
    """

    context: int
    loss_on: str = "auto"
    truncate: bool = False
    skip_bad: bool = False


class CorpusBuilder:
    """Encodes records and gathers their documents."""

    def __init__(self, tokenizer: Tokenizer, options: CorpusOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._tokens = array("i")
        self._learned = bytearray()
        self._bounds = array("q", [0])
        self._windowed = 0
        self._truncated = 0

    def add(self, record: Record) -> None:
        """Encode a record and add its documents.

        Raises
        ------
        DataError
            Where it is empty, too long, or has nothing to learn.
        ChatError
            Where the chat template refuses it.
        """
        if record.text is not None:
            self._add_text(record.text)
            return
        tokens, learned = self._encode_answered(record)
        limit = self._options.context + 1
        too_long = len(tokens) > limit
        if too_long and not self._options.truncate:
            raise DataError(
                f"the record has {len(tokens) - 1} tokens, and the context is "
                f"{self._options.context}.",
                "Compile with a longer --context, or keep the beginnings with --truncate.",
            )
        tokens, learned = tokens[:limit], learned[:limit]
        if not any(learned[1:]):
            raise DataError(
                "nothing to learn is left in the record"
                + (" within the context." if too_long else "."),
                "Give it a completion, or an assistant's message, that fits in the context.",
            )
        self._truncated += too_long
        self._append(tokens, learned)

    def _encode_answered(self, record: Record) -> tuple[list[int], list[bool]]:
        """Encode a prompt with completion, or a conversation."""
        tokenizer, everything = self._tokenizer, self._options.loss_on == "all"
        if record.messages is not None:
            if everything:
                whole = tokenizer.chat.render(record.messages)
                return tokenizer.encode_marked([(whole, True)])
            return tokenizer.encode_marked(tokenizer.chat.mark_answers(record.messages))
        pieces = [(record.prompt or "", everything), (record.completion or "", True)]
        tokens, learned = tokenizer.encode_marked(pieces)
        end = tokenizer.end[:1]
        return (
            [*tokenizer.begin, *tokens, *end],
            [*[False] * len(tokenizer.begin), *learned, *[True] * len(end)],
        )

    def _add_text(self, text: str) -> None:
        """Add a text, every token learned, in windows that share one token where it is long."""
        if self._options.loss_on == "completion":
            raise DataError(
                "the record is a text without a completion, and --loss-on completion was asked.",
                "Use `prompt` and `completion`, or --loss-on all.",
            )
        tokenizer, context = self._tokenizer, self._options.context
        tokens = array("i", tokenizer.begin)
        for piece in pieces_of(text):
            tokens.extend(tokenizer.codec.encode(piece)[0])
        if len(tokens) == len(tokenizer.begin):
            raise DataError("the text is empty.", "Remove it or fill it.")
        tokens.extend(tokenizer.end[:1])
        if len(tokens) < 2:
            raise DataError("the text is a single token.", "Join it with another.")
        self._windowed += len(tokens) > context + 1
        for begin in range(0, len(tokens) - 1, context):
            window = tokens[begin : begin + context + 1]
            self._append(window, [True] * len(window))

    def _append(self, tokens: array[int] | list[int], learned: list[bool]) -> None:
        self._tokens.extend(tokens)
        self._learned += bytes([False, *learned[1:]])
        self._bounds.append(len(self._tokens))

    def finish(self, bad: BadRecords) -> Corpus:
        """Give all documents added so far."""
        return Corpus(
            np.array(self._tokens, np.int32),
            np.frombuffer(bytes(self._learned), np.bool_),
            np.array(self._bounds, np.int64),
            bad.count,
            bad.first,
            self._windowed,
            self._truncated,
        )


def read_corpus(path: Path, tokenizer: Tokenizer, options: CorpusOptions) -> Corpus:
    """Read and encode a data file.

    Parameters
    ----------
    path : Path
        JSONL or plain text, as `read_records` tells them apart.
    tokenizer : Tokenizer
    options : CorpusOptions

    Returns
    -------
    Corpus

    Raises
    ------
    DataError
        At the first bad record (with file and line), or where no record is left.
    FileError
        Where the file cannot be read.
    """
    bad = BadRecords(options.skip_bad)
    builder = CorpusBuilder(_with_files_clock(tokenizer, path), options)
    for record in read_records(path, bad):
        _add(builder, record, bad)
    corpus = builder.finish(bad)
    if not len(corpus):
        raise DataError(
            f"{path} holds no record to learn from"
            + (f": {bad.count} were skipped, the first because {bad.first}" if bad.count else "."),
            "Give it at least one line with `text`, `prompt` with `completion`, or `messages`.",
        )
    return corpus


def _add(builder: CorpusBuilder, record: Record, bad: BadRecords) -> None:
    """Add a record, or note that it is bad."""
    try:
        builder.add(record)
    except FabricError as error:
        bad.meet(record.place, error)


def _with_files_clock(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """Stop the chat template's clock at the file's own date.

    A template may write today's date; a run that is resumed tomorrow must read the same data.
    """
    if not tokenizer.has_chat or not path.exists():
        return tokenizer
    changed = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return Tokenizer(tokenizer.codec, tokenizer.begin, tokenizer.end, tokenizer.chat.at(changed))
