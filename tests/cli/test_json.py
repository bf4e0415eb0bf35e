"""The keys that `--json` promises, on real runs of every command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from .helpers import fabric, fabric_json


def test_compile(compiled: dict[str, Any], bundle: Path) -> None:
    assert set(compiled) == {
        "bundle", "kernels", "module", "model", "target", "parameters", "seconds", "size_mib",
        "notes", "planned_mib", "resident_layers",
    }  # fmt: skip
    assert Path(compiled["module"]) == bundle / "module.so"
    assert Path(compiled["module"]).is_file()
    assert set(compiled["kernels"]) == {"tuned", "near", "default"}
    assert compiled["model"] == "nano"
    assert compiled["parameters"] > 1e6
    assert compiled["size_mib"] > 0


def test_training(bundle: Path, data: Path, tmp_path: Path) -> None:
    found = fabric_json(
        "run", bundle / "module.so", "--train", data / "train.jsonl",
        "--eval-data", data / "validation.jsonl", "--adapter", tmp_path / "out",
        "--max-steps", 2, "--batch", 1, "--seed", 3,
    )  # fmt: skip
    assert set(found) == {
        "steps", "tokens", "tokens_per_s", "train_loss", "eval_loss_before", "eval_loss",
        "peak_memory_mib", "device_memory_mib", "adapter",
    }  # fmt: skip
    assert found["steps"] == 2
    assert 0 < found["tokens"] <= 128
    assert 0 < found["eval_loss"] <= found["eval_loss_before"]
    assert found["peak_memory_mib"] > 30
    assert (Path(found["adapter"]) / "adapter_model.safetensors").is_file()
    assert (Path(found["adapter"]) / "loss.svg").read_text().startswith("<svg")


def test_training_without_validation_data_gives_null(adapter: Path, bundle: Path, data: Path,
                                                     tmp_path: Path) -> None:  # fmt: skip
    found = fabric_json(
        "run", bundle, "--train", data / "train.jsonl", "--adapter", tmp_path, "--max-steps", 1
    )
    assert found["eval_loss"] is None
    assert found["eval_loss_before"] is None


def test_evaluation(bundle: Path, data: Path, adapter: Path) -> None:
    bare = fabric_json("run", bundle, "--eval", data / "validation.jsonl")
    tuned = fabric_json("run", bundle, "--eval", data / "validation.jsonl", "--adapter", adapter)
    assert set(bare) == {"loss", "perplexity", "tokens"}
    assert bare["perplexity"] == pytest.approx(math.exp(bare["loss"]))
    assert tuned["tokens"] == bare["tokens"] > 0
    assert tuned["loss"] != bare["loss"]


def test_a_prompt(bundle: Path, adapter: Path) -> None:
    arguments = ("run", bundle, "--prompt", r"Q: Does it work?\nA:", "--max-new-tokens", 5)
    bare = fabric_json(*arguments)
    assert {"text", "tokens", "tokens_per_s", "time_to_first_token_ms"} <= set(bare)
    assert bare["tokens"] <= 5
    assert bare["time_to_first_token_ms"] > 0
    nothing = fabric_json(*arguments, "--adapter", f"{adapter}:0", "--adapter", f"{adapter}:0")
    assert nothing["text"] == bare["text"]


def test_prompts_that_begin_alike(bundle: Path) -> None:
    first, second = (rf"Q: Is tea {word}?\nA:" for word in ("good", "hot"))
    length = ("--max-new-tokens", 4)
    both = fabric_json("run", bundle, "--prompt", first, "--prompt", second, *length)
    answers = both["answers"]
    assert answers[0]["reused_tokens"] == 0 < answers[1]["reused_tokens"]
    alone = fabric_json("run", bundle, "--prompt", second, *length)
    assert answers[1]["text"] == alone["text"]


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        (("Q:", "--capacity", 5000), "capacity of 5000 tokens was asked for; this model attends"),
        (("word " * 3000,), "this model attends over 1024"),
        (("Q:", "--max-new-tokens", 4000), "4000 new ones are asked for"),
    ],
)
def test_more_than_the_model_attends_over(bundle: Path, asked: tuple, cause: str) -> None:
    done = fabric("run", bundle, "--prompt", *asked)
    assert done.returncode == 2
    assert cause in " ".join(done.stderr.split())


def test_a_text_slides_past_its_capacity(bundle: Path) -> None:
    arguments = ("--prompt", "Q: Does", "--capacity", 32, "--max-new-tokens", 60, "--slide")
    found = fabric_json("run", bundle, *arguments, "--temperature", 1, "--seed", 3)
    assert found["finished_by"] in ("end", "length")


def test_the_words_of_a_prompt_are_all_that_standard_output_holds(bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "Q: Does", "--max-new-tokens", 4)
    assert fabric(*arguments).stdout == fabric_json(*arguments)["text"] + "\n"


@pytest.mark.slow
def test_estimate() -> None:
    found = fabric_json("estimate", "random:125M", "--context", 128)
    assert {"peak_memory_mib", "step_seconds", "parameters"} <= set(found)
    assert found["peak_memory_mib"] > 50
    larger = fabric_json("estimate", "random:1B", "--context", 128)
    assert all(larger[key] > found[key] for key in ("peak_memory_mib", "step_seconds"))


def test_inspect(bundle: Path) -> None:
    found = fabric_json("inspect", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert found["manifest"] == manifest
    shown = fabric("inspect", bundle / "module.so").stdout
    for name, entry in manifest["files"].items():
        assert name in shown
        assert entry["sha256"] in shown


def test_targets_and_devices() -> None:
    targets = fabric_json("targets")
    names = [target["name"] for target in targets["targets"]]
    assert targets["host"] in names
    device = fabric_json("devices")["devices"][0]
    assert device["target"] == targets["host"]
    assert device["cores"] >= 1


def test_the_seed_decides_what_is_drawn(bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "The", "--temperature", 2, "--max-new-tokens", 12)
    one, again, other = (fabric_json(*arguments, "--seed", seed)["text"] for seed in (1, 1, 2))
    assert one == again != other
