"""Text to token ids and back: by a tokenizer.json, or by bytes where a model has none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..targets import FabricError
from .files import read_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

_BYTES = 256
_BYTE_OFFSET = 3

Span = tuple[int, int]


class TokenizerError(FabricError):
    """The bundle's tokenizer cannot be used."""


class Codec(Protocol):
    """What turns text into token ids and back; `ModelCodec` and `ByteCodec` are the two kinds."""

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Give the tokens, and for each the characters (begin, end) that it stands for."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text; bytes that are no UTF-8 become U+FFFD."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether the token stands for no text."""
        ...


class ModelCodec:
    """The model's own tokenizer, a tokenizer.json of the `tokenizers` library.

    Parameters
    ----------
    path : Path
        tokenizer.json.
    vocab_size : int
        Rows of the model's embedding; the tokenizer must not give more.

    Raises
    ------
    TokenizerError
        Where the file cannot be read or is for a model with more tokens.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer: LibraryTokenizer = Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise read_error(path, error) from error
        except ValueError as error:
            raise TokenizerError(
                f"{path} is no tokenizer that the `tokenizers` library can read: {error}.",
                "Compile the model again from a folder with a working tokenizer.json.",
            ) from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab_size:
            raise TokenizerError(
                f"{path} gives tokens up to {largest}, and the model has {vocab_size}.",
                "Compile the model again with the tokenizer it was trained with.",
            )
        self.prefix: list[int] = list(self.tokenizer.encode("").ids)
        self._drop_post_processor()

    def _drop_post_processor(self) -> None:
        """Keep exact offsets: a byte-level post-processor trims the spaces off them."""
        from tokenizers.processors import TemplateProcessing

        self.tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Give the tokens, and for each the characters (begin, end) that it stands for."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def is_special(self, token: int) -> bool:
        """Whether the token stands for no text."""
        return token in self._special


class ByteCodec:
    """UTF-8 bytes as tokens, for models without a tokenizer: token = byte + 3.

    The first three tokens stay free because models use them for padding, begin and end (the layout
    of ByT5, Xue et al. 2022). Tokens that are no byte decode to U+FFFD.

    Parameters
    ----------
    vocab_size : int
        Rows of the model's embedding, at least 256.

    Raises
    ------
    TokenizerError
        Where the vocabulary cannot hold all bytes.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < _BYTES:
            raise TokenizerError(
                f"The model has no tokenizer, and its {vocab_size} tokens cannot hold all bytes.",
                "Compile a model with a tokenizer, or one of at least 256 tokens.",
            )
        self.offset = min(_BYTE_OFFSET, vocab_size - _BYTES)
        self.prefix: list[int] | None = None

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Give the tokens, and for each the characters (begin, end) that it stands for."""
        pieces = [character.encode("utf-8", errors="replace") for character in text]
        tokens = [byte + self.offset for piece in pieces for byte in piece]
        return tokens, [(i, i + 1) for i, piece in enumerate(pieces) for _ in piece]

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text; bytes that are no UTF-8, and tokens that are no byte, become U+FFFD."""
        # 0xFF occurs in no UTF-8, so it decodes to one U+FFFD of its own.
        data = bytes(
            token - self.offset if 0 <= token - self.offset < _BYTES else 0xFF
            for token in tokens
            if not self.is_special(token)
        )
        return data.decode("utf-8", errors="replace")

    def is_special(self, token: int) -> bool:
        """Whether the token stands for no text."""
        return token < self.offset
