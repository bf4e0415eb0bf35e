"""A bundle's tokenizer: what begins and ends a document, chats, and text as it is generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .chat import ChatTemplate
from .codec import ByteCodec, Codec, ModelCodec, TokenizerError
from .files import read_error
from .protocols import BundleLike

_REPLACEMENT = "\ufffd"


class Tokenizer:
    """A bundle's tokenizer with the tokens that begin and end a document, and its chat template.

    Parameters
    ----------
    codec : Codec
        How text becomes tokens.
    begin : sequence of int
        Tokens before every document and prompt.
    end : sequence of int
        Tokens that end a generation; the first is written after every document in training.
    chat : ChatTemplate or None
        How a conversation becomes text.
    """

    def __init__(
        self,
        codec: Codec,
        begin: Sequence[int] = (),
        end: Sequence[int] = (),
        chat: ChatTemplate | None = None,
    ) -> None:
        self.codec = codec
        self.begin = tuple(begin)
        self.end = tuple(end)
        self._chat = chat

    @property
    def chat(self) -> ChatTemplate:
        """The chat template.

        Raises
        ------
        TokenizerError
            Where the model has none.
        """
        if self._chat is None:
            raise TokenizerError(
                "The model has no chat template, so it cannot read `messages` or hold a chat.",
                "Use `text` or `prompt`/`completion` records and --prompt, or compile the model "
                "from a folder with a chat_template.jinja.",
            )
        return self._chat

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._chat is not None

    def encode_prompt(self, text: str) -> list[int]:
        """Give the tokens of a prompt, with those that begin a document."""
        return [*self.begin, *self.codec.encode(text)[0]]

    def encode_marked(self, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """Encode pieces of text as one string, and tell which tokens belong to marked pieces.

        The whole is encoded at once, as it is in generation, and a token is marked where any of
        its characters is: a token that straddles the border holds part of what is to be learned.

        Parameters
        ----------
        pieces : sequence of (str, bool)
            The text and whether it is marked, in order.

        Returns
        -------
        tokens : list of int
        marks : list of bool
            As long as `tokens`.
        """
        flags = bytearray()
        for text, marked in pieces:
            flags += bytes([marked]) * len(text)
        tokens, spans = self.codec.encode("".join(text for text, _ in pieces))
        return tokens, [1 in flags[begin : max(end, begin + 1)] for begin, end in spans]

    def end_of_turn(self) -> tuple[int, ...]:
        """Give the tokens that end a chat answer: `end`, and what the template writes after one.

        The template itself is asked, by rendering an answer and looking at what follows it; only
        a special token counts, since plain text there may also occur in answers.
        """
        suffix = self.chat.after_answer()
        tokens = self.codec.encode(suffix)[0] if suffix else []
        first = tokens[:1] if tokens and self.codec.is_special(tokens[0]) else []
        return tuple(dict.fromkeys([*self.end, *first]))

    def stream(self) -> StreamDecoder:
        """Start a decoder that is given one token after another."""
        return StreamDecoder(self.codec)


class StreamDecoder:
    """Turns a growing list of tokens into text, never giving half a character.

    A character may come in several tokens, and a tokenizer may write a space only where a word
    follows another; so the text of a few tokens back is decoded with and without the new ones, and
    the difference is what is new. Text that ends in U+FFFD may still become a character and waits.
    """

    _LONGEST_WAIT = 8

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """Add a token; give the text that is now certain, which may be empty."""
        self._tokens.append(token)
        waiting = len(self._tokens) - self._given
        before, after = self._decode()
        if not after.startswith(before) or (
            after.endswith(_REPLACEMENT) and waiting < self._LONGEST_WAIT
        ):
            return ""
        self._tokens, self._given = self._tokens[self._given :], waiting
        return after[len(before) :]

    def flush(self) -> str:
        """Give what still waits, with U+FFFD for the half of a character."""
        before, after = self._decode()
        self._tokens, self._given = [], 0
        return after[len(before) :]

    def _decode(self) -> tuple[str, str]:
        """Decode the tokens already given as text, and those with the waiting ones."""
        return self._codec.decode(self._tokens[: self._given]), self._codec.decode(self._tokens)


def load_tokenizer(bundle: BundleLike) -> Tokenizer:
    """Open the tokenizer of a bundle.

    Tokens that begin a document are those that the tokenizer's own post-processor writes; a model
    whose tokenizer has none, or that has no tokenizer, begins with its configured begin token.

    Raises
    ------
    TokenizerError
        Where the tokenizer cannot be read or does not fit the model.
    """
    vocab_size = int(bundle.config["vocab_size"])
    begin = bundle.config.get("bos_token_id")
    end = tuple(int(token) for token in bundle.config.get("eos_token_ids") or ())
    configured = [] if begin is None else [int(begin)]
    if bundle.tokenizer_path is None:
        return Tokenizer(ByteCodec(vocab_size), configured, end)
    path = bundle.tokenizer_path
    folder = path if path.is_dir() else path.parent
    codec = ModelCodec(folder / "tokenizer.json", vocab_size)
    # A post-processor may also append tokens (an end); only the model's begin opens a document.
    opening = [token for token in codec.prefix if token not in end or token in configured]
    return Tokenizer(codec, opening or configured, end, _load_chat(folder))


def _load_chat(folder: Path) -> ChatTemplate | None:
    """Read chat_template.jinja and the strings of the special tokens that it writes."""
    template = folder / "chat_template.jinja"
    if not template.exists():
        return None
    special = folder / "special_tokens.json"
    try:
        variables = json.loads(special.read_text("utf-8")) if special.exists() else {}
        return ChatTemplate(template.read_text("utf-8"), variables)
    except OSError as error:
        raise read_error(template, error) from error
    except ValueError as error:
        raise TokenizerError(
            f"{special} is not the JSON it should be: {error}.",
            "Compile the model again.",
        ) from error
