"""A cache that grows by pages gives the bits of one that is whole; smaller caches come close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Bundle, InferenceEngine
from bitfabric.targets import cache_room

from ..devices import TARGET_PARAMETERS
from .conftest import BASE, CASES, compile_tiny
from .test_devices import kl

LONG = 120
CASE = CASES["grouped-query-relu2"]


def _rooms_and_logits(bundle: Bundle, tokens: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the room after each call, and the logits: prompts and single tokens by turns."""
    engine = InferenceEngine(bundle, capacity=BASE.max_context)
    rooms, logits = [engine.room], []
    for begin, end in ((0, 9), (9, 17), (17, 18), (18, 80), (80, 88)):
        piece = tokens[begin:end]
        if len(piece) == 8:
            logits += [engine.decode(int(token)).copy() for token in piece]
        else:
            logits.append(engine.prefill(piece).copy())
        rooms.append(engine.room)
    engine.rewind(4)
    logits.append(engine.prefill(tokens[88:LONG]).copy())
    return rooms, np.array(logits)


def _check(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, BASE.vocab_size, LONG)
    monkeypatch.setattr(cache_room, "PAGE", 16)
    rooms, grown = _rooms_and_logits(bundle, tokens)
    assert rooms == [16, 16, 48, 48, 80, 112]
    monkeypatch.setattr(cache_room, "PAGE", 256)
    rooms, whole = _rooms_and_logits(bundle, tokens)
    assert len(set(rooms)) == 1
    np.testing.assert_array_equal(grown, whole)
    return grown


def _all_caches(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for form in ("f32", "f16", "int8"):
        tiny = compile_tiny(folder / form, CASE, target=target, head="int8", kv_cache=form)
        found[form] = _check(tiny.bundle, monkeypatch).astype("float64")
    # A tiny model of random weights: its own 8-bit steps enlarge what is rounded.
    for form, bound in (("f16", 1e-3), ("int8", 1e-2)):
        assert 0 < kl(found["f32"], found[form]).mean() < bound


@pytest.mark.slow
def test_a_cache_grows_and_contexts_reach_the_models_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = compile_tiny(tmp_path, CASE, kv_cache="int8")
    _check(tiny.bundle, monkeypatch)
    engine = InferenceEngine(tiny.bundle, capacity=BASE.max_context)
    assert engine.capacity == BASE.max_context
    engine.prefill([1] * (BASE.max_context - 1))
    engine.decode(1)
    assert engine.position == BASE.max_context


@pytest.mark.slow
def test_all_caches_on_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _all_caches("cpu", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGET_PARAMETERS)
def test_all_caches_on_devices(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _all_caches(target, tmp_path, monkeypatch)
