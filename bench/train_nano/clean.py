"""What counts as a paragraph of English prose, and which paragraphs have been seen already."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Characters outside ASCII that have a plain equal; the vocabulary is too small for both.
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "\xa0": " "}
)
_STOP_WORDS = frozenset(
    {
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "is",
        "that",
        "for",
        "it",
        "with",
        "as",
        "be",
        "on",
        "by",
        "are",
        "this",
        "or",
        "not",
    }
)
# People's addresses have no place in a model.
_ADDRESS = re.compile(r"\S+@\S+\.\w+|<[^>]*@[^>]*>|https?://")
_SHORTEST_PARAGRAPH = 40
_SHORTEST_DOCUMENT = 200


def normalise(text: str) -> str:
    """Plain punctuation, no control characters, no paragraph marks, single spaces."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = re.sub(r"[\x00-\x1f\x7f\ufffd¶]|\\[\w(]+", " ", text)
    return " ".join(text.split())


def is_prose(paragraph: str) -> bool:
    """Mostly letters of English, with at least six words and no mail or web address."""
    if len(paragraph) < _SHORTEST_PARAGRAPH or paragraph.count(" ") < 5:
        return False
    if _ADDRESS.search(paragraph):
        return False
    letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in paragraph)
    symbols = sum(c in "_=<>{}|\\/@#$%^*+[]~`" for c in paragraph)
    return letters >= 0.82 * len(paragraph) and symbols <= 0.03 * len(paragraph)


def is_english(text: str) -> bool:
    """At least one word in eight is one of English's most frequent ones."""
    words = text.lower().split()
    return sum(word in _STOP_WORDS for word in words) >= 0.12 * len(words)


def fingerprint(text: str) -> str:
    """SHA-256 of the normalised text in lower case, as hexadecimal digits."""
    return hashlib.sha256(normalise(text).lower().encode()).hexdigest()


class Cleaner:
    """Keeps the prose of each document and drops paragraphs that occurred before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def clean(self, paragraphs: list[str]) -> str:
        """Return the document's text, one paragraph a line; empty when too little is left."""
        kept = []
        for raw in paragraphs:
            paragraph = normalise(raw)
            if not is_prose(paragraph):
                continue
            digest = hashlib.blake2b(paragraph.lower().encode(), digest_size=12).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                kept.append(paragraph)
        text = "\n".join(kept)
        return text if len(text) >= _SHORTEST_DOCUMENT and is_english(text) else ""
