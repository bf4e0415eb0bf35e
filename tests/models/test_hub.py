"""Names of the Hugging Face Hub: fetched, verified, and refused with a reason."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from bitfabric.models import CheckpointError, open_model
from bitfabric.models.catalog import CATALOG
from bitfabric.models.families import FAMILIES
from huggingface_hub import constants, errors

from ..reference.gguf_files import tiny, write_gguf, write_hf
from ..reference.hub_cache import COMMIT, fill_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_model_that_was_fetched_is_found_offline(
    tmp_path: Path, cache: Path, revision: str
) -> None:
    folder = write_hf(tiny("bitnet"), tmp_path / "hf")
    fill_cache(cache, "some/bitnet", folder)
    model = open_model(f"hf://some/bitnet{revision}")
    assert model.name == "bitnet"
    want = open_model(str(folder)).ternary(1, "up_proj")
    assert np.array_equal(model.ternary(1, "up_proj").codes, want.codes)


def test_one_gguf_file_of_a_repository(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "files").mkdir()
    write_gguf(tiny("bitnet"), tmp_path / "files" / "m.gguf")
    fill_cache(cache, "some/bitnet-gguf", tmp_path / "files")
    assert open_model("hf://some/bitnet-gguf#m.gguf").name == "m"
    with pytest.raises(CheckpointError, match=r"has no config\.json") as raised:
        open_model("hf://some/bitnet-gguf")
    assert "#" in raised.value.remedy


def test_a_file_whose_bytes_changed_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    fill_cache(cache, "some/bitnet", write_hf(tiny("bitnet"), tmp_path / "hf"))
    blob = (cache / "models--some--bitnet" / "snapshots" / COMMIT / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert blob.name != hashlib.sha256(content).hexdigest()
    with pytest.raises(CheckpointError, match=r"model\.safetensors of hf://some/bitnet is not"):
        open_model("hf://some/bitnet")


@pytest.mark.parametrize("name", ["some/other", "some/other#m.gguf"])
def test_what_is_not_here_is_refused_offline(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be reached") as raised:
        open_model(f"hf://{name}")
    assert "network" in raised.value.remedy


@pytest.mark.parametrize("name", ["", "one", "a/b/c", "a/b@", "a/b c"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a model"):
        open_model(f"hf://{name}")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="needs the package huggingface_hub") as raised:
        open_model("hf://some/model")
    assert "bitfabric[hub]" in raised.value.remedy


def test_what_the_hub_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> str:
        raise errors.HFValidationError("Repository Not Found for this name.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="does not give hf://some/model: Repository Not Fou"):
        open_model("hf://some/model")


def test_a_download_that_breaks_off_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*arguments: Any, **options: Any) -> str:
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaks)
    with pytest.raises(CheckpointError, match="Connection reset") as raised:
        open_model("hf://some/model")
    assert "goes on" in raised.value.remedy


def test_only_what_a_model_needs_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_hf(tiny("bitnet"), tmp_path / "hf")
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(shutil.copytree(folder, tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    open_model("hf://some/model@v1.0")
    assert (asked["repository"], asked["revision"]) == ("some/model", "v1.0")
    assert "config.json" in asked["allow_patterns"]
    assert not {"*", "*.bin", "*.py"}.intersection(asked["allow_patterns"])


def test_the_catalogue_has_every_family_and_whole_commits() -> None:
    assert [entry.family for entry in CATALOG] == [family.name for family in FAMILIES]
    for model in (model for entry in CATALOG for model in entry.models):
        assert bool(model.source) == (model.revision != "main")
        assert model.revision == "main" or len(model.revision) == 40
