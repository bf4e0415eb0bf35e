"""The whole path on a compiled model: `fabric run` trains, dies, resumes, and peft agrees."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import InferenceEngine, open_bundle
from bitfabric.runtime.adapter import load_adapter
from bitfabric.runtime.generate import load_adapters
from bitfabric.runtime.tokenizer import load_tokenizer
from bitfabric.targets import get_target
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers

from ..reference.folders import AUTOBITLINEAR, masters, packed, write_folder
from ..reference.torch_bitnet import TorchBitNet, steady_tokens
from .conftest import write_jsonl

WORDS = [f"w{index}" for index in range(45)]
SETTINGS = {
    "--batch": "4",
    "--max-steps": "40",
    "--learning-rate": "0.01",
    "--eval-every": "10",
    "--save-every": "1",
    "--seed": "5",
}


@dataclass(frozen=True)
class Place:
    """A compiled model with its Hugging Face folder and data."""

    folder: Path
    bundle: Path
    train: Path
    validation: Path

    def command(self, adapter: Path, *more: str) -> list[str]:
        settings = [word for pair in SETTINGS.items() for word in pair]
        return [
            *(sys.executable, "-m", "bitfabric.cli", "run", str(self.bundle)),
            *("--train", str(self.train), "--eval-data", str(self.validation)),
            *("--adapter", str(adapter), "--resume", "--json", *settings, *more),
        ]

    def start(self, adapter: Path, limit: Callable[[], None] | None = None) -> Any:
        return subprocess.Popen(
            self.command(adapter),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )


def sentences(seed: int, count: int) -> list[dict[str, str]]:
    """Texts in which each word is followed by the one three further on, mostly."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        word = chance.randrange(45)
        words = []
        for _ in range(chance.randrange(5, 40)):
            words.append(WORDS[word])
            word = (word + 3) % 45 if chance.random() < 0.9 else chance.randrange(45)
        texts.append({"text": " ".join(words)})
    return texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny model of transformers' BitNet, compiled with dropout for rows of two documents."""
    import torch

    root = tmp_path_factory.mktemp("place")
    tensors = masters("bitnet", torch.float32)
    # Exact in the bundle's float16, so that all sides begin with the same numbers.
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half().float()
    tensors = packed(tensors, inverted=False)
    folder = write_folder(root / "model", "bitnet", tensors, AUTOBITLINEAR)
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = LibraryTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    lora = LoraOptions(rank=4, alpha=8.0, dropout=0.1)
    options = CompileOptions(context=24, micro_batch=2, lora=lora, head="f16")
    bundle = compile_model(open_model(str(folder)), get_target("cpu"), options, root / "m.fabric")
    train = write_jsonl(root / "train.jsonl", sentences(1, 40))
    return Place(folder, bundle, train, write_jsonl(root / "valid.jsonl", sentences(2, 10)))


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The adapter of a run that nothing interrupted, and what the command said about it."""
    adapter = tmp_path_factory.mktemp("trained") / "adapter"
    process = place.start(adapter)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return adapter, json.loads(output.splitlines()[-1])


def curve(adapter: Path) -> list[tuple[Any, ...]]:
    lines = map(json.loads, (adapter / "metrics.jsonl").read_text().splitlines())
    return [(e["step"], e.get("loss"), e.get("grad_norm"), e.get("eval_loss")) for e in lines]


def same(one: Path, two: Path) -> bool:
    names = ("adapter_model.safetensors", "adapter_config.json")
    files = all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    return files and curve(one) == curve(two)


def wait_for_lines(path: Path, count: int, process: Any) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.001)


def test_a_training_lowers_the_loss_and_promises_its_keys(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    adapter, result = trained
    assert set(result) >= {
        *("steps", "tokens", "tokens_per_s", "train_loss", "eval_loss_before"),
        *("eval_loss", "peak_memory_mib", "device_memory_mib", "adapter"),
    }
    assert result["steps"] == 40
    assert result["eval_loss"] < 0.8 * result["eval_loss_before"]
    assert 20 < result["peak_memory_mib"] < 200
    assert (adapter / "loss.svg").exists()


def test_evaluation_gives_the_loss_that_training_reported(
    place: Place, trained: tuple[Path, dict[str, Any]]
) -> None:
    adapter, result = trained
    command = [sys.executable, "-m", "bitfabric.cli", "run", str(place.bundle), "--json"]
    command += ["--eval", str(place.validation), "--adapter", str(adapter)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(output.splitlines()[-1])["loss"] == result["eval_loss"]


def test_sigkill_at_random_steps_changes_no_bit(
    place: Place, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    chance = random.Random(11)
    for target in (2, 15, 30):
        process = place.start(adapter)
        wait_for_lines(adapter / "metrics.jsonl", target, process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = place.start(adapter)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert same(adapter, trained[0])
    result = json.loads(output.splitlines()[-1])
    for key in ("steps", "tokens", "train_loss", "eval_loss_before", "eval_loss"):
        assert result[key] == trained[1][key]


def test_ctrl_c_saves_says_how_to_go_on_and_changes_no_bit(
    place: Place, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    process = place.start(adapter)
    wait_for_lines(adapter / "metrics.jsonl", 17, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "--resume" in errors
    process = place.start(adapter)
    process.communicate()
    assert process.returncode == 0
    assert same(adapter, trained[0])


def test_a_full_disk_is_one_clear_sentence_and_loses_nothing(
    place: Place, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    process = place.start(adapter)
    wait_for_lines(adapter / "metrics.jsonl", 10, process)
    process.kill()
    process.communicate()
    checkpoint = adapter / "checkpoint.safetensors"
    before = checkpoint.read_bytes()

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, len(before) - 1))

    process = place.start(adapter, small)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "could not be written" in errors
    assert "Free some space" in errors
    assert "Traceback" not in errors
    assert checkpoint.read_bytes() == before
    process = place.start(adapter)
    process.communicate()
    assert same(adapter, trained[0])


def test_peft_loads_the_adapter_and_computes_the_same_logits(
    place: Place, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    adapter = tmp_path / "adapter"
    shutil.copytree(trained[0], adapter)
    bundle = open_bundle(place.bundle)
    ours = load_adapter(str(adapter), bundle)
    reference = TorchBitNet(open_model(str(place.folder)), ours.tensors, ours.scale)
    tokens = steady_tokens(reference, (1, 16))
    with torch.compiler.set_stance("force_eager"):
        base = transformers.AutoModelForCausalLM.from_pretrained(
            place.folder, dtype=torch.float32, attn_implementation="eager"
        )
        plain = base(torch.as_tensor(tokens)).logits[0, -1].detach().numpy()
        model = peft.PeftModel.from_pretrained(base, adapter)
        expected = model(torch.as_tensor(tokens)).logits[0, -1].detach().numpy()
    engine = InferenceEngine(bundle, load_adapters([str(adapter)], bundle))
    logits = engine.prefill(tokens[0].tolist())
    assert np.abs(expected - plain).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_the_adapted_model_writes_what_it_was_taught(
    place: Place, trained: tuple[Path, dict[str, Any]]
) -> None:
    command = [sys.executable, "-m", "bitfabric.cli", "run", str(place.bundle), "--json"]
    command += ["--prompt", "w3 w6 w9 w12", "--max-new-tokens", "4", "--adapter", str(trained[0])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert {"text", "tokens", "tokens_per_s", "time_to_first_token_ms"} <= set(found)
    tokenizer = load_tokenizer(open_bundle(place.bundle))
    assert len(tokenizer.codec.encode(found["text"])[0]) == found["tokens"]
