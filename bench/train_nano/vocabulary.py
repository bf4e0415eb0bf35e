"""Train nano's tokenizer on the corpus and write the corpus as token ids.

    python bench/train_nano/vocabulary.py --work /tmp/nano --tokens .carry-nano

Reads WORK/corpus.jsonl.xz; writes WORK/folder/{tokenizer.json, tokenizer_config.json,
chat_template.jinja} and, under --tokens, what the training program needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
from collect import read_records
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 8192
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
# The words of the fine-tune's field are rare beside manuals; the vocabulary should hold some.
RATIONALE_WEIGHT = 10
# Question and answer in the form of the biomedqa documents: no marker that training never saw.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- 'Q: ' + message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' %}
{{- 'A: ' + message['content'] + eos_token }}
{%- else %}
{{- message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'A:' }}
{%- endif %}
"""


def train_tokenizer(corpus: list[tuple[str, str]]) -> Tokenizer:
    """Byte-level BPE with single digits; `encode` puts the begin token in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        text
        for source, text in corpus
        for _ in range(RATIONALE_WEIGHT if source == "biomedqa" else 1)
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files as transformers and the runtime read them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def held_out(source: str, text: str) -> bool:
    """One document in a hundred, chosen by its hash; every training rationale is trained on."""
    return source != "biomedqa" and hashlib.sha256(text.encode()).digest()[0] * 100 < 256


def write_tokens(tokenizer: Tokenizer, texts: list[str], path: Path) -> dict[str, int]:
    """Write ``<|bos|> text <|eos|>`` of every text as one xz file of uint16; return its sizes."""
    eos = tokenizer.token_to_id(EOS)
    rows: list[np.ndarray] = []
    for start in range(0, len(texts), 4096):
        for encoding in tokenizer.encode_batch(texts[start : start + 4096]):
            rows.append(np.array([*encoding.ids, eos], dtype=np.uint16))
    stream = np.concatenate(rows)
    with lzma.open(path, "wb", preset=4) as file:
        file.write(stream.tobytes())
    size = sum(len(text.encode()) for text in texts)
    return {"documents": len(texts), "tokens": len(stream), "bytes": size}


def main() -> None:
    """Train the tokenizer, then encode the three parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of corpus.jsonl.xz")
    parser.add_argument("--tokens", type=Path, required=True, help="folder for the token files")
    options = parser.parse_args()
    with lzma.open(options.work / "corpus.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    corpus = [(row["source"], row["text"]) for row in rows]
    tokenizer = train_tokenizer([row for row in corpus if not held_out(*row)])
    write_tokenizer(tokenizer, options.work / "folder")
    options.tokens.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [text for source, text in corpus if not held_out(source, text)],
        "heldout": [text for source, text in corpus if held_out(source, text)],
        # For measuring only: the training program never draws from this part.
        "validation": [record["text"] for record in read_records("validation.jsonl")],
    }
    sizes = {
        name: write_tokens(tokenizer, texts, options.tokens / f"{name}.u16.xz")
        for name, texts in parts.items()
    }
    (options.tokens / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
