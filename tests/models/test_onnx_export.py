"""Exported decoders: onnxruntime and TVM's own frontend compute the torch reference's logits."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.models import Checkpoint, RandomCheckpoint, open_model
from bitfabric.models.onnx_format import OnnxOptions, export_onnx, store, writer
from bitfabric.models.onnx_format.nbits import GuardedColumns, pack, unpack
from bitfabric.targets import FabricError
from hypothesis import given
from hypothesis import strategies as st

from ..parity.conftest import BASE, CASES
from ..reference.torch_bitnet import TorchBitNet, random_adapter, steady_tokens

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from ..reference.onnx_sessions import OnnxDecoder  # noqa: E402

CONFIGS = {name: case.get("config", {}) for name, case in CASES.items()}
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def tiny(name: str = "grouped-query-relu2", **changes: Any) -> RandomCheckpoint:
    return RandomCheckpoint(replace(BASE, **CONFIGS[name], **changes), seed=3, name="tiny")


def expected(reference: TorchBitNet, shape: tuple[int, int] = (2, 10)) -> tuple[Any, Any]:
    tokens = steady_tokens(reference, shape, margin=2e-5)
    return tokens, reference.logits(tokens).detach().numpy()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_prompt_and_cache_equal_torch(tmp_path: Path, name: str, bits: int) -> None:
    model = tiny(name)
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(bits))
    onnx.checker.check_model(str(path), full_check=bits == 8)
    tokens, logits = expected(TorchBitNet(model))
    decoder = OnnxDecoder(path)
    np.testing.assert_allclose(decoder(tokens[:, :5]), logits[:, :5], **TOLERANCE)
    np.testing.assert_allclose(decoder(tokens[:, 5:7]), logits[:, 5:7], **TOLERANCE)
    for i in range(7, 10):
        np.testing.assert_allclose(decoder(tokens[:, i : i + 1])[:, 0], logits[:, i], **TOLERANCE)


def test_several_blocks_with_guards_are_exact(tmp_path: Path) -> None:
    # 254 columns fill two blocks exactly, 304 need filling; no power of two among them.
    config = replace(BASE, hidden_size=256, num_heads=2, num_kv_heads=1, head_dim=128)
    model = RandomCheckpoint(replace(config, num_layers=1, intermediate_size=304), 5, "wide")
    (path,) = export_onnx(model, tmp_path / "m.onnx")
    tokens, logits = expected(TorchBitNet(model), (1, 4))
    np.testing.assert_allclose(OnnxDecoder(path)(tokens), logits, **TOLERANCE)


def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    model = tiny()
    (path,) = export_onnx(model, tmp_path / "m.onnx")
    tokens, logits = expected(TorchBitNet(model), (1, 6))
    padded = np.pad(tokens, ((0, 0), (3, 0)))
    mask = np.array([[0] * 3 + [1] * 6])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    decoder = OnnxDecoder(path)
    np.testing.assert_allclose(decoder(padded, mask, positions)[:, 3:], logits, **TOLERANCE)
    assert all(np.isfinite(value).all() for value in decoder.cache.values())


def test_an_int8_head_equals_torch_with_that_head(tmp_path: Path) -> None:
    model = tiny("silu-untied-no-subnorm")
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(head="int8"))
    stored = open_model(str(path))
    tokens, logits = expected(TorchBitNet(stored))
    np.testing.assert_allclose(OnnxDecoder(path)(tokens), logits, **TOLERANCE)
    for name in ("embedding", "head"):
        rows, kept = getattr(model, name)(), getattr(stored, name)()
        step = np.abs(rows.astype(np.float32)).max(axis=1, keepdims=True) / 127
        assert (np.abs(rows - kept) <= 0.51 * step).all()


@pytest.mark.parametrize("bits", [2, 8])
def test_adapters_add_up_with_their_weights(tmp_path: Path, bits: int) -> None:
    model = tiny()
    one = random_adapter(model.config, rank=2, seed=1)
    two = random_adapter(model.config, rank=3, modules=("q_proj", "down_proj"), seed=2)
    both = {}
    for name in one:
        parts = [(one[name], 0.5), *([(two[name], 2.0)] if name in two else [])]
        is_b = name.endswith("lora_B")
        both[name] = np.concatenate(
            [part * (factor if is_b else 1.0) for part, factor in parts], axis=1 if is_b else 0
        )
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(bits), [(one, 0.5), (two, 2.0)])
    onnx.checker.check_model(str(path))
    tokens, logits = expected(TorchBitNet(model, both))
    np.testing.assert_allclose(OnnxDecoder(path)(tokens), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(FabricError, match="exported with an adapter"):
        open_model(str(path))


def test_tvm_reads_the_standard_operators_and_computes_the_same(tmp_path: Path) -> None:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = tiny(num_layers=1)
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(bits=8))
    tokens, logits = expected(TorchBitNet(model), (1, 6))
    cache = [1, model.config.num_kv_heads, 0, model.config.head_dim]
    feeds = {
        "input_ids": tokens.astype(np.int64),
        "attention_mask": np.ones((1, 6), np.int64),
        "position_ids": np.arange(6)[None],
        "past_key_values.0.key": np.zeros(cache, np.float32),
        "past_key_values.0.value": np.zeros(cache, np.float32),
    }
    shapes = {name: list(value.shape) for name, value in feeds.items()}
    types = {name: str(value.dtype) for name, value in feeds.items()}
    module = from_onnx(onnx.load(path), shapes, types)
    module = relax.transform.DecomposeOpsForInference()(module)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    outputs = machine["main"](*(tvm.runtime.tensor(value) for value in feeds.values()))
    np.testing.assert_allclose(outputs[0].numpy(), logits, rtol=1e-4, atol=1e-5)


class TestFiles:
    """What is on disk, and when."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer, "_INLINE_BYTES", 0)
        monkeypatch.setattr(store, "ALIGNMENT", 256)

    def test_large_weights_go_beside_and_come_back(self, tmp_path: Path) -> None:
        model = tiny()
        path, data = export_onnx(model, tmp_path / "m.onnx")
        assert data.stat().st_size > path.stat().st_size / 4
        onnx.checker.check_model(str(path))
        tokens, logits = expected(TorchBitNet(model))
        np.testing.assert_allclose(OnnxDecoder(path)(tokens), logits, **TOLERANCE)
        weight = open_model(str(path)).ternary(1, "down_proj")
        assert (weight.codes == model.ternary(1, "down_proj").codes).all()

    def test_another_export_replaces_both_files(self, tmp_path: Path) -> None:
        _, old = export_onnx(tiny(), tmp_path / "m.onnx")
        _, new = export_onnx(tiny("silu-untied-no-subnorm"), tmp_path / "m.onnx")
        assert old != new
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "m.onnx", new])

    def test_a_failed_export_leaves_the_old_one(self, tmp_path: Path) -> None:
        files = export_onnx(tiny(), tmp_path / "m.onnx")
        before = {file: file.read_bytes() for file in files}
        with pytest.raises(RuntimeError):
            export_onnx(Failing(tiny("silu-untied-no-subnorm")), tmp_path / "m.onnx")
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


class Failing(Checkpoint):
    """A model whose last layer cannot be read."""

    def __init__(self, model: Checkpoint) -> None:
        super().__init__(model.name, model.config)
        self.norm, self.embedding, self.head = model.norm, model.embedding, model.head  # type: ignore[method-assign]
        self._model = model

    def norm(self, name: str) -> Any: ...

    def embedding(self, rows: slice = slice(None)) -> Any: ...

    def ternary(self, layer: int, module: str) -> Any:
        if layer == 1:
            raise RuntimeError("gone")
        return self._model.ternary(layer, module)


def test_nano_brings_its_tokenizer(tmp_path: Path) -> None:
    nano = open_model("nano")
    path, *others = export_onnx(nano, tmp_path / "nano.onnx")
    assert {file.name for file in others} == {
        "tokenizer.json", "chat_template.jinja", "tokenizer_config.json",
    }  # fmt: skip
    again = open_model(str(path))
    assert again.config == nano.config
    assert again.tokenizer_files == nano.tokenizer_files
    export_onnx(nano, path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FabricError, match=r"another model's tokenizer\.json"):
        export_onnx(nano, path)


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **extra: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return real(name, *arguments, **extra)

    for name in [name for name in sys.modules if "onnx_format" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(FabricError, match="package onnx") as raised:
        open_model(str(tmp_path / "m.onnx"))
    assert "bitfabric[onnx]" in raised.value.remedy


@given(
    st.integers(1, 5), st.integers(1, 400), st.sampled_from([2, 4, 8]), st.integers(0, 2**32 - 1)
)
def test_blocks_with_guards_keep_every_code(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    layout = GuardedColumns(columns)
    packed = pack(layout.insert(codes), bits, layout.block)
    assert packed.shape == (rows, layout.blocks, layout.block * bits // 8)
    levels = unpack(packed, bits).astype(np.int8) - np.int8(1 << (bits - 1) if bits < 8 else -128)
    assert (layout.remove(levels) == codes).all()
    guards = levels.reshape(rows, layout.blocks, layout.block)[:, :, -1]
    assert not guards.any()
