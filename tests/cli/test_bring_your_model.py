"""Every command of docs/bring-your-model.md does what the page says, on tiny models."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ..reference.gguf_files import tiny, write_gguf, write_hf
from ..reference.hub_cache import fill_cache
from .helpers import fabric, fabric_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bring-your-model.md"
COMMANDS = [
    line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    fabric ")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names, all of one model."""
    folder = tmp_path_factory.mktemp("bring")
    model = tiny("bitnet")
    model.changes["hidden_act"] = "relu2"
    source = write_hf(model, folder / "my-model")
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(source / "tokenizer.json"))
    write_gguf(model, folder / "model.gguf", "TQ2_0")
    write_gguf(model, folder / "ggml-model-i2_s.gguf", "I2_S-x86")
    (hub,) = (word for line in COMMANDS for word in line.split() if word.startswith("hf://"))
    repository, _, commit = hub.removeprefix("hf://").partition("@")
    fill_cache(folder / "home" / "hub", repository, source, commit)
    return folder


@pytest.fixture(autouse=True)
def offline(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HOME", str(place / "home"))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def test_the_page_has_commands() -> None:
    assert {line.split()[1] for line in COMMANDS} == {"models", "compile", "estimate", "export"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page(line: str, place: Path) -> None:
    words = shlex.split(line)[1:]
    found = fabric_json(*words, cwd=place)
    if words[0] == "compile":
        assert found["bundle"] == "my.fabric"
        assert (place / "my.fabric" / "module.so").is_file()
    if words[0] == "export":
        wanted = words[words.index("--type") + 1] if "--type" in words else "TQ2_0"
        assert found["type"] == wanted
        tensors = gguf.GGUFReader(place / found["file"]).tensors
        assert {t.tensor_type.name for t in tensors} == set(found["tensors"])
        assert wanted in found["tensors"]


def test_the_kind_of_machine_must_be_said(place: Path) -> None:
    done = fabric("compile", "ggml-model-i2_s.gguf", cwd=place)
    assert done.returncode == 2
    assert "--i2s-layout x86" in done.stderr


def test_a_relu2_export_says_which_programs_know_it(place: Path) -> None:
    shown = fabric("export", "my-model/", "--gguf", "note.gguf", cwd=place).stdout
    assert "bitnet.hidden_activation" in shown
    assert "--architecture bitnet-b1.58" in shown


def test_an_export_must_say_what_to_write(place: Path) -> None:
    done = fabric("export", "my-model/", cwd=place)
    assert done.returncode == 2
    assert "--gguf" in done.stderr


def test_models_lists_families_checks_and_names() -> None:
    found = fabric_json("models")
    assert [family["name"] for family in found["families"]] == [
        "bitnet",
        "1bitllm",
        "llama",
        "gemma3",
        "qwen3",
    ]
    shown = fabric("models").stdout
    for family in found["families"]:
        assert family["verified"]
        for model in family["models"]:
            assert model["fetch"] in shown
            assert model["fetch"].startswith(f"hf://{model['repository']}@{model['revision']}")
    assert found["published_weights"] in shown
