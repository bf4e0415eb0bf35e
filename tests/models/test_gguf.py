"""GGUF files of every kind give the codes, scales, norms and tables that were put into them."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from bitfabric.models import MODULES, Checkpoint, open_model
from bitfabric.models.ternary import quantize_master
from gguf import GGMLQuantizationType as Type

from ..reference.gguf_files import (
    ARCHITECTURES,
    GGUF_MODULES,
    Tiny,
    config_of,
    store,
    tiny,
    write_gguf,
    write_hf,
)

FAMILIES = list(ARCHITECTURES)


def same_matrices(model: Checkpoint, expected: Tiny) -> None:
    for (layer, module), codes in expected.codes.items():
        weight = model.ternary(layer, module)
        assert weight.codes.dtype == np.int8
        assert np.array_equal(weight.codes, codes), (layer, module)
        assert weight.scale == expected.scales[layer, module], (layer, module)


@pytest.mark.parametrize("storage", ["TQ1_0", "TQ2_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_what_was_stored(tmp_path: Path, family: str, storage: str) -> None:
    expected = tiny(family)
    if storage == "BF16":
        expected.scales = dict.fromkeys(expected.scales, 0.0625)
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf", storage)))
    same_matrices(model, expected)
    assert model.name == "m"


@pytest.mark.parametrize("layout", ["x86", "arm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_i2_s_in_the_layout_that_is_said(tmp_path: Path, family: str, layout: str) -> None:
    expected = tiny(family, hidden=64, ffn=128)
    # Its scale is float32: one that no float16 has comes through.
    expected.scales = {key: float(np.float32(scale * 1.0001)) for key, scale in
                       expected.scales.items()}  # fmt: skip
    file = write_gguf(expected, tmp_path / "m.gguf", f"I2_S-{layout}")
    same_matrices(open_model(str(file), layout), expected)


def test_i2_s_of_an_odd_number_of_64s_is_arms_by_itself(tmp_path: Path) -> None:
    # 96 x 33 is no shape of a model; 32 x 66 rows of k_proj make 33 times 64 codes.
    expected = tiny("bitnet", hidden=48, ffn=64, num_key_value_heads=1, head_dim=12)
    counts = {codes.size % 128 for codes in expected.codes.values()}
    assert counts == {0, 64}
    file = write_gguf(expected, tmp_path / "m.gguf", "I2_S-arm")
    same_matrices(open_model(str(file)), expected)


@pytest.mark.parametrize("storage", ["TQ1_0", "TQ2_0"])
def test_rows_that_are_no_multiple_of_256_stand_beside_as_f16(tmp_path: Path, storage: str) -> None:
    expected = tiny("bitnet", hidden=64, ffn=256)
    file = write_gguf(expected, tmp_path / "m.gguf", storage)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds == {storage, "F16", "F32"}
    same_matrices(open_model(str(file)), expected)


@pytest.mark.parametrize("dtype", [Type.F32, Type.F16, Type.BF16])
def test_masters_are_quantised_as_in_the_forward_pass(tmp_path: Path, dtype: Type) -> None:
    expected = tiny("bitnet", hidden=64, ffn=96)
    generator = np.random.default_rng(1)
    masters = {
        f"blk.{layer}.{GGUF_MODULES[module]}.weight": gguf.quantize(
            generator.standard_normal(codes.shape).astype(np.float32), dtype
        )
        for (layer, module), codes in expected.codes.items()
    }
    stored = {name: (data, dtype, None) for name, data in masters.items()}
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf", "F16", replace=stored)))
    for layer, module in expected.codes:
        data = masters[f"blk.{layer}.{GGUF_MODULES[module]}.weight"]
        want = quantize_master(gguf.dequantize(data, dtype))
        weight = model.ternary(layer, module)
        assert np.array_equal(weight.codes, want.codes)
        assert weight.scale == want.scale


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_configuration_equal_the_hugging_face_folders(
    tmp_path: Path, family: str
) -> None:
    expected = tiny(family)
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf")))
    other = open_model(str(write_hf(expected, tmp_path / "hf")))
    assert model.config == other.config == config_of(expected, tmp_path / "again")
    for name in model.config.norm_shapes():
        assert model.norm(name).dtype == np.float32
        assert np.array_equal(model.norm(name), other.norm(name)), name


@pytest.mark.parametrize("table", [Type.F32, Type.F16, Type.BF16, Type.Q8_0])
def test_tables_of_every_type(tmp_path: Path, table: Type) -> None:
    expected = tiny("llama")
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf", table=table)))
    for read, name in ((model.embedding, "model.embed_tokens"), (model.head, "lm_head")):
        want = gguf.dequantize(gguf.quantize(expected.others[f"{name}.weight"], table), table)
        assert np.array_equal(read(), want)
        assert np.array_equal(read(slice(7, 19)), want[7:19])
    assert model.embedding().dtype == (np.float16 if table == Type.F16 else np.float32)


def test_a_table_of_q6_k_blocks(tmp_path: Path) -> None:
    expected = tiny("bitnet")
    blocks = np.random.default_rng(2).integers(0, 256, (50, 210), np.uint8)
    blocks[:, 208:] = np.float16([0.01]).view(np.uint8)
    file = write_gguf(
        expected, tmp_path / "m.gguf", replace={"token_embd.weight": (blocks, Type.Q6_K, None)}
    )
    model = open_model(str(file))
    assert np.array_equal(model.embedding(), gguf.dequantize(blocks, Type.Q6_K))
    assert np.array_equal(model.head(slice(3, 5)), model.embedding()[3:5])


def test_a_separate_scale_multiplies(tmp_path: Path) -> None:
    expected = tiny("1bitllm")
    factor = np.array([0.375], np.float32)
    stored = {f"blk.1.{GGUF_MODULES[module]}.scale": factor for module in MODULES}
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf", replace=stored)))
    for module in MODULES:
        assert model.ternary(1, module).scale == 0.375 * expected.scales[1, module]
        assert model.ternary(0, module).scale == expected.scales[0, module]


def test_blocks_without_weights_have_no_say_in_the_scale(tmp_path: Path) -> None:
    """Quantisers write the scale 0 where a block of 256 weights is all zero."""
    expected = tiny("bitnet")
    expected.codes[0, "up_proj"][3] = 0
    model = open_model(str(write_gguf(expected, tmp_path / "m.gguf", "TQ2_0")))
    same_matrices(model, expected)


@pytest.mark.parametrize(
    ("architecture", "metadata", "activation"),
    [
        ("bitnet", {}, "silu"),
        ("bitnet", {"bitnet.hidden_activation": "relu2"}, "relu2"),
        ("bitnet", {"bitnet.hidden_activation": "silu"}, "silu"),
        ("bitnet-b1.58", {}, "relu2"),
        ("bitnet-25", {}, "relu2"),
    ],
)
def test_the_gate_is_what_programs_compute_for_the_architecture(
    tmp_path: Path, architecture: str, metadata: dict[str, str], activation: str
) -> None:
    file = write_gguf(
        tiny("bitnet"), tmp_path / "m.gguf", architecture=architecture, metadata=metadata
    )
    config = open_model(str(file)).config
    assert config.activation == activation
    assert config.family == ("bitnet" if activation == "relu2" else "1bitllm")


def test_a_turn_may_end_with_a_token_of_its_own(tmp_path: Path) -> None:
    file = write_gguf(
        tiny("bitnet"), tmp_path / "m.gguf", metadata={"tokenizer.ggml.eot_token_id": 9}
    )
    assert open_model(str(file)).config.eos_token_ids == (2, 9)


def test_opening_and_reading_rows_take_the_memory_of_the_rows(tmp_path: Path) -> None:
    """The vocabulary of 2B-4T: the table's 63 MiB are mapped, never read as a whole."""
    expected = tiny("bitnet", vocab_size=128_256)
    file = write_gguf(expected, tmp_path / "m.gguf")
    assert file.stat().st_size > 60 << 20
    tracemalloc.start()
    try:
        model = open_model(str(file))
        rows = model.embedding(slice(100_000, 100_100))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert np.array_equal(rows, expected.others["model.embed_tokens.weight"][100_000:100_100])


def test_a_13b_opens_at_once_and_in_little_memory(tmp_path: Path) -> None:
    """The published shape, with its tokenizer; the tensors are a hole in a sparse file."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bitnet-b1.58")
    hidden, ffn, layers, vocabulary = 5120, 13824, 40, 32002
    for key, value in {
        "context_length": 2048,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": 40,
        "attention.head_count_kv": 40,
    }.items():
        writer.add_uint32(f"bitnet-b1.58.{key}", value)
    writer.add_float32("bitnet-b1.58.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    words = [f"{i:04x}" for i in range(vocabulary // 2)]
    writer.add_token_list([*words, *(f"{word}{word}" for word in words)])
    writer.add_token_merges([f"{word} {word}" for word in words])
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (hidden, hidden))
    shapes |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
    norms = {"attn_norm": hidden, "ffn_norm": hidden, "attn_sub_norm": hidden, "ffn_sub_norm": ffn}
    size = 0

    def add(name: str, shape: tuple[int, ...], kind: Type) -> None:
        nonlocal size
        values, stored = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // values * stored
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), count, kind)
        size += -(-count // 32) * 32

    add("token_embd", (vocabulary, hidden), Type.F16)
    add("output_norm", (hidden,), Type.F32)
    for layer in range(layers):
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}", shape, Type.TQ2_0)
        for name, length in norms.items():
            add(f"blk.{layer}.{name}", (length,), Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.truncate(file.seek(0, 2) + size + 32)
    assert size > 3 << 30

    start = time.perf_counter()
    tracemalloc.start()
    try:
        model = open_model(str(tmp_path / "m.gguf"))
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 10
    assert model.config.parameters > 12.5e9
    assert not model.embedding(slice(0, 4)).any()


def test_a_dense_llama_of_one_magnitude_is_ternary(tmp_path: Path) -> None:
    """The common converter stores what does not fit its blocks as F16, in every architecture."""
    expected = tiny("llama", hidden=64, ffn=96)
    file = write_gguf(expected, tmp_path / "m.gguf", "F16")
    model = open_model(str(file))
    same_matrices(model, expected)
    assert model.config == replace(config_of(expected, tmp_path / "hf"), family="llama")
    assert store(expected.codes[0, "q_proj"], 0.5, "TQ2_0")[1] == Type.F16
