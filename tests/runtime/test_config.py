"""Settings: who overrides whom, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitfabric.runtime.config import ConfigError, TrainingConfig, make_config


def test_flags_go_over_the_file_over_the_checkpoint_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("batch = 8\nlearning-rate = 1e-3\npack = true\nseed = 5\n")
    saved = {"batch": 2, "learning_rate": 0.5, "epochs": 7.0, "seed": 1}
    flags = {"seed": 9, "batch": None, "train": Path("data.jsonl")}
    config = make_config(flags, file, saved)
    assert (config.seed, config.batch, config.learning_rate) == (9, 8, 1e-3)
    assert config.pack is True
    assert config.epochs == 7.0
    assert config.accumulate == TrainingConfig().accumulate
    assert config.train == "data.jsonl"


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('train = "data/a.jsonl"\neval_data = "/absolute/b.jsonl"\n')
    config = make_config({}, file)
    assert config.train == str(tmp_path / "data/a.jsonl")
    assert config.eval_data == "/absolute/b.jsonl"
    assert config.log_dir == ""


def test_an_unknown_setting_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("learning_rat = 1\n")
    with pytest.raises(ConfigError, match="learning_rat") as caught:
        make_config({}, file)
    assert caught.value.remedy == "Did you mean `learning_rate`?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('batch = "four"', "not a whole number"),
        ("batch = 4.5", "not a whole number"),
        ("batch = true", "not a whole number"),
        ("pack = 1", "not true or false"),
        ("scheduler = 3", "not text"),
        ('epochs = "1"', "not a number"),
        ("batch 4", "not valid TOML"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        make_config({}, file)


def test_a_whole_number_is_a_number() -> None:
    assert make_config({"epochs": 2}).epochs == 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_ratio", 1.5),
        ("clip_norm", -1.0),
        ("clip_norm", float("inf")),
        ("scheduler", "cosin"),
        ("loss_on", "prompt"),
        ("seed", -1),
        ("epochs", -1.0),
        ("adapter", ""),
    ],
)
def test_an_impossible_value_is_refused_by_its_option(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        make_config({"train": "x", name: value}).validate()


def test_what_needs_other_settings_says_so() -> None:
    with pytest.raises(ConfigError, match="No training data"):
        make_config({}).validate()
    with pytest.raises(ConfigError, match="--early-stop needs"):
        make_config({"train": "x", "early_stop": 2}).validate()
    make_config({"train": "x", "early_stop": 2, "eval_data": "y"}).validate()


def test_the_context_is_at_most_the_compiled_one() -> None:
    assert make_config({}).row_length(256) == 256
    assert make_config({"context": 64}).row_length(256) == 64
    with pytest.raises(ConfigError, match=r"512 tokens.*for 256") as caught:
        make_config({"context": 512}).row_length(256)
    assert "--context 512" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 30),
        ({"epochs": 2.5}, 25),
        ({"max_steps": 100}, 100),
        ({"max_steps": 7}, 7),
        ({"max_steps": 100, "epochs": 1.0}, 10),
        ({"epochs": 0.01}, 1),
    ],
)
def test_epochs_and_max_steps_limit_each_other(settings: dict[str, float], steps: int) -> None:
    assert make_config(settings).total_steps(10) == steps
