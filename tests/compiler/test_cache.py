"""A module is compiled once for each shape, target and state of the sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, cache, compile_model
from bitfabric.compiler import compile as compiling
from bitfabric.models import RandomCheckpoint
from bitfabric.runtime import InferenceEngine, open_bundle
from bitfabric.targets import get_target, list_targets

from ..parity.conftest import BASE

OPTIONS = CompileOptions(context=8, lora=LoraOptions(rank=2), head="f16")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache; the list grows by a name for each module that is really built."""
    monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path / "cache"))
    names: list[str] = []
    build = compiling.build

    def counted(*arguments):
        names.append("built")
        return build(*arguments)

    monkeypatch.setattr(compiling, "build", counted)
    return names


def compiled(folder: Path, seed: int) -> InferenceEngine:
    model = RandomCheckpoint(BASE, seed, f"random:{seed}")
    compile_model(model, get_target("cpu"), OPTIONS, folder / f"{seed}.fabric")
    return InferenceEngine(open_bundle(folder / f"{seed}.fabric"), capacity=16)


@pytest.mark.slow
def test_other_weights_of_the_same_shape_reuse_the_code(built: list[str], tmp_path: Path) -> None:
    first, second = compiled(tmp_path, 1), compiled(tmp_path, 2)
    assert built == ["built"]
    assert not np.array_equal(first.prefill([1, 2, 3]), second.prefill([1, 2, 3]))


@pytest.mark.slow
def test_a_damaged_entry_is_built_again(built: list[str], tmp_path: Path) -> None:
    expected = compiled(tmp_path, 1).prefill([1, 2])
    (module,) = (tmp_path / "cache").glob("*/module.so")
    module.write_bytes(module.read_bytes()[:-10])
    np.testing.assert_array_equal(compiled(tmp_path, 1).prefill([1, 2]), expected)
    assert built == ["built", "built"]


def test_everything_that_decides_the_code_is_in_the_key() -> None:
    target = get_target("cpu")
    keys = {cache.key_of(BASE, target, OPTIONS)}
    keys.add(cache.key_of(replace(BASE, rope_theta=5e5), target, OPTIONS))
    keys.add(cache.key_of(BASE, target, replace(OPTIONS, context=9)))
    keys.add(cache.key_of(BASE, target, replace(OPTIONS, lora=LoraOptions(rank=2, alpha=3))))
    others = [other for other in list_targets() if other.name != target.name]
    keys.update(cache.key_of(BASE, other, OPTIONS) for other in others)
    assert len(keys) == 4 + len(others)
    dumped = replace(OPTIONS, debug_dump=Path("ir"))
    assert cache.key_of(BASE, target, dumped) in keys


@pytest.mark.slow
def test_an_unwritable_cache_is_no_error(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path / "file" / "cache"))
    compiled(tmp_path, 1)
    assert built == ["built"]
