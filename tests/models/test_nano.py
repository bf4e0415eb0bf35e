"""The shipped nano is small, ternary, learned, and never saw the validation records."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
TOOLS = ROOT / "bench" / "train_nano"
EOS = 2


def texts(split: str, field: str = "text") -> list[str]:
    lines = (ROOT / "examples" / "biomedqa" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)[field] for line in lines]


def cleaning_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano_clean", TOOLS / "clean.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folder_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 12_000_000


def test_every_matrix_of_the_layers_is_packed_and_ternary() -> None:
    tensors = load_file(NANO / "model.safetensors")
    packed = {name: tensor for name, tensor in tensors.items() if "_proj.weight" in name}
    packed = {name: tensor for name, tensor in packed.items() if not name.endswith("_scale")}
    assert len(packed) == 8 * 7
    for name, tensor in packed.items():
        assert tensor.dtype == "uint8", name
        digits = Counter(digit for shift in (0, 2, 4, 6) for digit in (tensor >> shift & 3).flat)
        assert set(digits) == {0, 1, 2}, name
        assert float(tensors[f"{name}_scale"].item()) > 0, name


def test_chat_template_ends_where_the_answer_begins() -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = json.loads((NANO / "tokenizer_config.json").read_text())
    source = (NANO / "chat_template.jinja").read_text()
    assert config["chat_template"] == source
    environment = jinja2.Environment(keep_trailing_newline=False)
    prompt = environment.from_string(source).render(
        messages=[{"role": "user", "content": "Does it?"}],
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        add_generation_prompt=True,
    )
    assert prompt == "<|bos|>Q: Does it?\nA:"


def test_no_validation_question_is_in_the_corpus_manifest() -> None:
    fingerprint = cleaning_module().fingerprint
    manifest = json.loads((TOOLS / "corpus_manifest.json").read_text())
    collected = set(manifest["biomedqa_questions_sha256"])
    assert collected == {fingerprint(text) for text in texts("train", "question")}
    assert not collected & {fingerprint(text) for text in texts("validation", "question")}


def unigram_loss(tokenizer: Tokenizer, documents: list[list[int]]) -> float:
    """Mean nats a token under the training split's own frequencies: a unigram of the field."""
    counts = Counter(i for text in texts("train") for i in [*tokenizer.encode(text).ids[1:], EOS])
    total = sum(counts.values()) + tokenizer.get_vocab_size()
    losses = [-math.log((counts[i] + 1) / total) for ids in documents for i in ids[1:]]
    return sum(losses) / len(losses)


def test_transformers_finds_validation_perplexity_far_below_the_unigrams() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    documents = [[*tokenizer.encode(text).ids, EOS] for text in texts("validation")[:8]]
    # Unpacking is decorated with torch.compile, which would first build a C++ program.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model = transformers.AutoModelForCausalLM.from_pretrained(NANO)
        model = torch.nn.Module.float(model).eval()
        total, count = 0.0, 0
        for ids in documents:
            row = torch.tensor([ids])
            logits = model(row).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            count += len(ids) - 1
    perplexity = math.exp(total / count)
    assert perplexity < 0.5 * math.exp(unigram_loss(tokenizer, documents))
    assert perplexity < 150
