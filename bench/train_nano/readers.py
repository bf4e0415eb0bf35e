"""Readers from a package's files to documents: lists of plain-text paragraphs.

Every reader yields documents as lists of raw paragraphs; `clean.clean_document` then decides
which of them are English prose.
"""

from __future__ import annotations

import gzip
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lxml import etree
from lxml import html as lxml_html

Documents = Iterator[list[str]]

# Text of these elements is layout, code or tables, not prose.
_SKIPPED = frozenset(
    {
        "script",
        "style",
        "nav",
        "header",
        "footer",
        "pre",
        "table",
        "math",
        "svg",
        "head",
        "button",
        "select",
        "aside",
    }
)
_SKIPPED_CLASSES = ("toc", "sphinxsidebar", "related", "headerlink", "nav", "sig", "highlight")
_BLOCKS = frozenset(
    {
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "li",
        "dd",
        "dt",
        "blockquote",
        "div",
        "section",
        "article",
        "title",
        "item",
        "page",
        "desc",
    }
)


def _read(path: Path) -> str:
    """Decode a file, unpacked when its name says that it is gzip or dictzip."""
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")


def _paragraphs(text: str) -> list[str]:
    """Split at blank lines and join the lines of each paragraph."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def _walk(element: etree._Element, parts: list[str], paragraphs: list[str]) -> None:
    """Append the inline text of `element` to `parts`; a block boundary flushes a paragraph."""

    def flush() -> None:
        paragraphs.append(" ".join("".join(parts).split()))
        parts.clear()

    tag = element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else None
    classes = element.get("class", "").split() if tag else []
    skipped = tag is None or tag in _SKIPPED or any(c in _SKIPPED_CLASSES for c in classes)
    if not skipped:
        block = tag in _BLOCKS
        if block:
            flush()
        parts.append(element.text or "")
        for child in element:
            _walk(child, parts, paragraphs)
        if block:
            flush()
    elif tag in ("pre", "table"):
        flush()
    parts.append(element.tail or "")


def read_html(path: Path) -> Documents:
    """HTML and Mallard pages: the text of the block elements, without code and tables."""
    try:
        root = lxml_html.fromstring(path.read_bytes())
    except (etree.ParserError, ValueError):
        return
    main = root.xpath("//main") or root.xpath("//*[@role='main']") or root.xpath("//body")
    parts: list[str] = []
    paragraphs: list[str] = []
    _walk(main[0] if main else root, parts, paragraphs)
    yield [*paragraphs, " ".join("".join(parts).split())]


def read_dictionary(path: Path) -> Documents:
    """A dictd dictionary whose headwords start in column 0; one document for 8 entries."""
    entries = re.split(r"\n(?=\S)", _read(path))
    prose = []
    for entry in entries:
        text = re.sub(r"[{}]|\(\d{4}-\d\d-\d\d\)|\[Jargon File\]|<[^>]{1,40}>", "", entry)
        headword, _, body = text.partition("\n")
        body = " ".join(body.split())
        if len(body) > 40:
            prose.append(f"{headword.strip()}: {body}")
    for start in range(0, len(prose), 8):
        yield prose[start : start + 8]


def read_gcide(path: Path) -> Documents:
    r"""GCIDE: entries `Word \Pron\, class. [etymology]` followed by senses and quotations."""
    text = re.sub(r"\[1913 Webster[^\]]*\]|\[PJC\]|\[WordNet 1\.5[^\]]*\]", "", _read(path))
    text = re.sub(r"[{}]", "", text)
    entries = []
    for entry in re.split(r"\n(?=\S)", text):
        # The part in backslashes is a pronunciation in a private notation.
        entry = re.sub(r" ?\\[^\\]*\\", "", entry, count=2)
        paragraphs = [p for p in _paragraphs(entry) if p]
        entries.append(paragraphs)
    for start in range(0, len(entries), 10):
        yield [p for paragraphs in entries[start : start + 10] for p in paragraphs]


def read_wordnet(path: Path) -> Documents:
    """WordNet's data files: `word, word: gloss`, 20 neighbouring synsets a document."""
    senses = []
    for line in _read(path).splitlines():
        fields, bar, gloss = line.partition("|")
        if not bar or line.startswith("  "):
            continue
        columns = fields.split()
        words = columns[4 : 4 + 2 * int(columns[3], 16) : 2]
        words = [re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in words]
        senses.append(f"{', '.join(words)}: {gloss.strip()}.")
    for start in range(0, len(senses), 20):
        yield senses[start : start + 20]


def read_gene_ontology(path: Path) -> Documents:
    """Terms of the Gene Ontology with their definitions, 10 neighbours a document."""
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "select term, definition from go_term where definition is not null order by go_id"
        ).fetchall()
    entries = [f"{term[0].upper()}{term[1:]}. {definition}" for term, definition in rows]
    for start in range(0, len(entries), 10):
        yield entries[start : start + 10]


def read_r_strings(path: Path) -> Documents:
    """Character vectors of an R data base: lines of text, joined to paragraphs.

    An ``.rdb`` file is a sequence of zlib streams behind 4-byte big-endian lengths; in R's
    serialisation a string is the flags word of CHARSXP (type 9), its length and its bytes.
    """
    data = path.read_bytes()
    offset = 0
    while offset + 4 < len(data):
        start = data.find(b"\x78", offset)
        if start < 0:
            return
        stream = zlib.decompressobj()
        try:
            plain = stream.decompress(data[start:])
        except zlib.error:
            offset = start + 1
            continue
        offset = len(data) - len(stream.unused_data)
        lines = []
        position = 0
        while (position := plain.find(b"\x00\x04\x00\x09", position)) >= 0:
            (length,) = struct.unpack(">i", plain[position + 4 : position + 8])
            length = max(length, 0)
            lines.append(plain[position + 8 : position + 8 + length].decode("utf-8", "replace"))
            position += 8 + length
        paragraphs = _paragraphs("\n".join(lines))
        # A chapter's worth of paragraphs a document, so that the hold-out can take some.
        for first in range(0, len(paragraphs), 60):
            yield paragraphs[first : first + 60]


def read_markdown(path: Path) -> Documents:
    """R Markdown without its header, code chunks, formulas and link targets."""
    text = re.sub(r"\A---\n.*?\n---\n", "", _read(path), flags=re.S)
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<!--.*?-->", "\n\n", text, flags=re.S)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]*>|[`*#]", "", text)
    yield _paragraphs(text)


def read_pod(path: Path) -> Documents:
    """Perl's documentation: ordinary paragraphs without their formatting codes."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", _read(path)):
        if paragraph.startswith((" ", "\t", "=")):
            continue
        for _ in range(3):
            paragraph = re.sub(r"[A-Z]<<? ?([^<>]*?) ?>?>", r"\1", paragraph)
        paragraphs.append(" ".join(paragraph.split()))
    yield paragraphs


def read_roff(path: Path) -> Documents:
    """Manual pages: text lines, with fonts and special characters taken out."""
    lines = []
    for line in _read(path).splitlines():
        if line.startswith(('.\\"', "'")):
            continue
        macro = re.match(r"\.([A-Za-z]+)\s*(.*)", line)
        if macro and macro[1] in ("B", "I", "BR", "IR", "RB", "RI", "BI", "IB"):
            line = macro[2].replace(" ", "" if len(macro[1]) == 2 else " ").replace('"', "")
        elif line.startswith("."):
            line = ""
        line = re.sub(r"\\f(\[[^\]]*\]|.)|\\[&%/|^]", "", line)
        line = line.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
        lines.append(line)
    yield _paragraphs("\n".join(lines))


READERS: dict[str, Callable[[Path], Documents]] = {
    "html": read_html,
    "dictionary": read_dictionary,
    "gcide": read_gcide,
    "wordnet": read_wordnet,
    "gene_ontology": read_gene_ontology,
    "r_strings": read_r_strings,
    "markdown": read_markdown,
    "pod": read_pod,
    "roff": read_roff,
}
