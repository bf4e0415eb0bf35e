"""`fabric adapter` and `fabric merge` as typed, and every command of the page about them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .helpers import fabric, fabric_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "take-your-adapter-elsewhere.md"


def commands_of(page: Path) -> list[list[str]]:
    """The indented lines that begin with `fabric`, as a shell would split them."""
    lines = (line.strip() for line in page.read_text("utf-8").splitlines() if line[:4] == "    ")
    return [shlex.split(line)[1:] for line in lines if line.startswith("fabric ")]


@pytest.fixture(scope="module")
def desk(bundle: Path, adapter: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page takes for given."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(bundle, folder / "nano.fabric")
    shutil.copytree(adapter, folder / "out")
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(data / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def page(desk: Path) -> dict[str, dict[str, Any]]:
    """The page, typed from top to bottom: what each command said with --json."""
    said = {}
    for arguments in commands_of(PAGE):
        if "compile" in arguments:
            arguments = [*arguments, "--context", "64", "--lora-rank", "2"]
        said[" ".join(arguments[:2]) + f" {len(said)}"] = fabric_json(*arguments, cwd=desk)
    return said


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(page: dict[str, Any], desk: Path) -> None:
    assert len(page) == 10
    out, back = desk / "out", desk / "back"
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (back / name).read_bytes()
    gguf = pytest.importorskip("gguf")
    for file, architecture in (("out.gguf", "bitnet"), ("for-bitnet-cpp.gguf", "bitnet-b1.58")):
        fields = gguf.GGUFReader(desk / file).fields
        assert fields["general.architecture"].contents() == architecture
    base = gguf.GGUFReader(desk / "nano.gguf")
    assert base.fields["general.architecture"].contents() == "bitnet"
    shapes = {tensor.name: tensor.shape.tolist() for tensor in base.tensors}
    for tensor in gguf.GGUFReader(desk / "out.gguf").tensors:
        name, _, factor = tensor.name.rpartition(".")
        column = 0 if factor == "lora_a" else 1
        assert tensor.shape[column] == shapes[name][column]


def test_a_training_on_remembers_its_start(page: dict[str, Any], desk: Path) -> None:
    shown = fabric_json("adapter", "show", "more/", cwd=desk)
    assert shown["training"]["init_adapter"] == "out.gguf"
    assert len(shown["training"]["settings"]["--init-adapter"]) == 64


def test_a_merge_tells_what_it_costs(page: dict[str, Any], desk: Path) -> None:
    plain, ternary = (said for name, said in page.items() if name.startswith("merge"))
    assert ternary["divergence"]["model with adapters"] == pytest.approx(0, abs=1e-9)
    assert ternary["divergence"]["merged"] > 0
    assert set(ternary["perplexity"]) == {"model with adapters", "model without", "merged"}
    assert "perplexity" not in plain
    assert 0 <= ternary["changed_codes"] < 1
    assert ternary["data"] == "validation.jsonl"


@pytest.mark.slow
def test_a_merge_is_measured_as_run_measures(page: dict[str, Any], desk: Path) -> None:
    how = ("-o", "again", "--to", "ternary", "--data", "validation.jsonl", "--context", 64)
    ternary = fabric_json("merge", "nano", "out", *how, cwd=desk)
    measured = fabric_json(
        "run", "nano.fabric", "--eval", "validation.jsonl", "--adapter", "out", cwd=desk
    )
    expected = ternary["perplexity"]["model with adapters"]
    assert measured["perplexity"] == pytest.approx(expected, rel=0.01)


def test_a_ternary_merge_is_never_silent(desk: Path) -> None:
    done = fabric(
        "merge", "nano", "out", "-o", "told", "--to", "ternary", "--tokens", 256, cwd=desk
    )
    assert done.returncode == 0
    for words in ("perplexity", "KL, nats per token", "of the codes", "model with adapters"):
        assert words in done.stdout


def test_the_f16_folder_is_whole_and_transformers_talks_with_it(
    page: dict[str, Any], desk: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(desk / "merged", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(desk / "merged")
    assert json.loads((desk / "merged" / "config.json").read_text())["torch_dtype"] == "float16"
    tokens = tokenizer("Q: Is water wet?", return_tensors="pt").input_ids
    with torch.no_grad():
        assert np.isfinite(model(tokens).logits.numpy()).all()
    refused = fabric("compile", "merged", cwd=desk)
    assert refused.returncode == 2
    assert "merged into floating point" in refused.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapter", "convert", "out", "x.gguf"), "--base"),
        (("adapter", "convert", "nowhere", "x.gguf"), "There is no adapter in nowhere"),
        (("adapter", "convert", "out", "train.jsonl", "--base", "nano"), "is there and no adapter"),
        (("adapter", "convert", "out", "out", "--to", "peft"), "is the adapter itself"),
        (("adapter", "convert", "out", "x.gguf", "--base", "random:125M"), "no place|needs"),
        (("merge", "random:125M", "out", "-o", "x", "--to", "f16"), "no place|needs"),
        (("merge", "nano", "out", "-o", "out", "--to", "f16"), "out exists"),
        (("merge", "nano", "nowhere:0.5", "-o", "x", "--to", "f16"), "no adapter in nowhere"),
        (
            ("run", "nano.fabric", "--prompt", "Q", "--adapter", "train.jsonl"),
            "There is no adapter",
        ),
    ],
)
def test_a_mistake_is_told_in_two_lines(desk: Path, arguments: tuple[str, ...], words: str) -> None:
    done = fabric(*arguments, cwd=desk)
    assert done.returncode == 2, done.stdout
    cause, remedy = done.stderr.splitlines()
    assert any(word in cause + remedy for word in words.split("|")), done.stderr
    assert not (desk / "x").exists()
    assert not (desk / "x.gguf").exists()
