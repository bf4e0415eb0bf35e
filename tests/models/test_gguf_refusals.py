"""What a GGUF file holds that cannot be computed exactly is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from bitfabric.models import MODULES, CheckpointError, open_model
from bitfabric.targets import FabricError
from gguf import GGMLQuantizationType as Type

from ..reference.gguf_files import pack_i2_s, tiny, write_gguf

GATE = "blk.1.ffn_gate.weight"


def read_all(file: Path, layout: str = "auto") -> None:
    model = open_model(str(file), layout)
    for layer in range(model.config.num_layers):
        for module in MODULES:
            model.ternary(layer, module)
    for name in model.config.norm_shapes():
        model.norm(name)
    model.embedding()
    model.head()


def ones(shape: tuple[int, int], value: float = 1.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


def spoilt(value: float) -> np.ndarray:
    array = ones((512, 256))
    array[3, 4] = value
    return array


def tq2(change: Any) -> tuple[np.ndarray, Type, None]:
    """Blocks of ones, 66 bytes each, with something done to them."""
    blocks = gguf.quantize(ones((512, 256)), Type.TQ2_0).copy()
    change(blocks)
    return blocks, Type.TQ2_0, None


def put(row: int, column: slice, values: Any) -> Any:
    def change(blocks: np.ndarray) -> None:
        blocks[row, column] = values

    return change


HALF = np.float16([2.0]).view(np.uint8)
NAN = np.float16([np.nan]).view(np.uint8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({GATE: None}, f"lacks 1 tensors, such as {GATE}"),
        ({"output_norm.weight": None}, "such as output_norm.weight"),
        ({GATE: ones((256, 256))}, rf"{GATE} has the shape \[256, 256\], not \[512, 256\]"),
        ({GATE: ones((512, 256), 0)}, f"{GATE} is zero throughout"),
        ({GATE: spoilt(np.nan)}, f"{GATE} holds NaN or infinity"),
        ({GATE: spoilt(np.inf)}, f"{GATE} holds NaN or infinity"),
        ({GATE: spoilt(2.0).astype(np.int8)}, f"{GATE} is stored as I8"),
        ({GATE: (gguf.quantize(ones((512, 256)), Type.Q8_0), Type.Q8_0, None)}, f"{GATE} is sto"),
        ({GATE: (gguf.quantize(ones((512, 256)), Type.Q4_0), Type.Q4_0, None)}, f"{GATE} is.*Q4_0"),
        ({GATE: tq2(put(3, slice(0, 1), 0xFF))}, f"{GATE} is declared ternary"),
        ({GATE: tq2(put(3, slice(64, 66), HALF))}, f"blocks of tensor {GATE} have 2 different"),
        ({GATE: tq2(put(3, slice(64, 66), NAN))}, f"{GATE} holds NaN or infinity"),
        ({GATE: tq2(put(slice(None), slice(0, 64), 0x55))}, f"{GATE} is zero throughout"),
        ({GATE: (ones((512, 256)), Type.F32, None), "blk.1.ffn_gate.scale": ones((1, 1))[0] * -1},
         f"{GATE} has the scale -1"),
        ({"blk.1.ffn_gate.scale": np.array([np.nan], np.float32)}, "ffn_gate.scale holds NaN"),
        ({"blk.1.ffn_gate.bias": ones((1, 512))[0]}, "blk.1.ffn_gate.bias is no part"),
        ({"blk.2.ffn_gate.weight": ones((512, 256))}, "blk.2.ffn_gate.weight is no part"),
        ({"blk.0.attn_norm.weight": spoilt(np.nan)[3]}, "attn_norm.weight holds NaN"),
        ({"token_embd.weight": np.full((50, 256), np.inf, np.float16)}, "token_embd.weight holds"),
        ({"token_embd.weight": None}, "lacks the tensor token_embd.weight"),
    ],
)  # fmt: skip
def test_tensors(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    file = write_gguf(tiny("1bitllm"), tmp_path / "m.gguf", replace=changes)
    with pytest.raises(CheckpointError, match=named):
        read_all(file)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.type": "adapter"}, "holds 'adapter', not a model"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"bitnet.block_count": None}, "bitnet.block_count as None"),
        ({"bitnet.block_count": 2**31}, "claims 2147483648 layers"),
        ({"bitnet.block_count": 3}, "lacks .* blk.2"),
        ({"bitnet.block_count": "two"}, "block_count as two"),
        ({"bitnet.embedding_length": 512, "bitnet.rope.dimension_count": None},
         "token_embd.weight has the shape"),
        ({"bitnet.rope.dimension_count": 32}, "rope.dimension_count to '32'"),
        ({"bitnet.rope.scaling.type": "yarn"}, "rope.scaling.type to 'yarn'"),
        ({"bitnet.rope.scaling.factor": 4.0}, "rope.scaling.factor to '4.0'"),
        ({"bitnet.hidden_activation": "gelu"}, "hidden_activation to 'gelu'"),
        ({"bitnet.expert_count": 8}, "expert_count to '8'"),
        ({"bitnet.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon as None"),
        ({"tokenizer.ggml.eos_token_id": 50}, "eos_token_id as 50"),
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "a"]}, "1 different"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"],
          "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "gpt-2"}, "merge 'a b'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
          "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "own"}, "pre-tokenizer 'own'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
          "tokenizer.ggml.merges": ["a b"]}, "no pre-tokenizer"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b"]}, "ggml.scores"),
    ],
)  # fmt: skip
def test_metadata(tmp_path: Path, metadata: dict[str, Any], named: str) -> None:
    file = write_gguf(tiny("1bitllm"), tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(FabricError, match=named):
        read_all(file)


def test_another_architecture(tmp_path: Path) -> None:
    file = write_gguf(tiny("1bitllm"), tmp_path / "m.gguf", architecture="mamba")
    with pytest.raises(CheckpointError, match="architecture 'mamba'"):
        read_all(file)


def test_a_gate_that_programs_would_not_compute(tmp_path: Path) -> None:
    file = write_gguf(
        tiny("bitnet"), tmp_path / "m.gguf", metadata={"bitnet-b1.58.hidden_activation": "silu"}
    )
    with pytest.raises(CheckpointError, match="hidden_activation to 'silu'"):
        read_all(file)


def test_an_ordinary_llama(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    file = write_gguf(tiny("llama"), tmp_path / "m.gguf", replace={GATE: dense})
    with pytest.raises(CheckpointError, match=f"{GATE} is not ternary, and nothing in the file"):
        read_all(file)


def test_a_llama_with_scaled_rotary_positions(tmp_path: Path) -> None:
    for value, refused in ((1.0, False), (2.0, True)):
        file = write_gguf(
            tiny("llama"), tmp_path / "m.gguf", replace={"rope_freqs.weight": ones((1, 32), value)}
        )
        if refused:
            with pytest.raises(CheckpointError, match=r"rope_freqs\.weight scales"):
                read_all(file)
        else:
            read_all(file)


def test_i2_s_is_never_guessed(tmp_path: Path) -> None:
    file = write_gguf(tiny("bitnet", 64, 128), tmp_path / "m.gguf", "I2_S-x86")
    with pytest.raises(CheckpointError, match="depends on the machine") as raised:
        read_all(file)
    assert "--i2s-layout x86 or --i2s-layout arm" in raised.value.remedy
    with pytest.raises(CheckpointError, match="no I2_S layout 'mips'"):
        read_all(file, "mips")
    read_all(file, "x86")


def test_i2_s_that_cannot_be_x86s(tmp_path: Path) -> None:
    model = tiny("bitnet", 48, 64, num_key_value_heads=1, head_dim=12)
    file = write_gguf(model, tmp_path / "m.gguf", "I2_S-arm")
    with pytest.raises(CheckpointError, match="cannot be I2_S in the x86 layout"):
        read_all(file, "x86")


@pytest.mark.parametrize(
    ("scale", "digit", "named"),
    [(np.nan, 2, "has the scale nan"), (0.0, 2, "has the scale 0"), (1.0, 1, "is zero throughout"),
     (1.0, 3, "is declared ternary")],
)  # fmt: skip
def test_damaged_i2_s(tmp_path: Path, scale: float, digit: int, named: str) -> None:
    model = tiny("bitnet", 64, 128)
    data = pack_i2_s(np.full((128, 64), digit - 1, np.int8), scale, "x86")
    file = write_gguf(model, tmp_path / "m.gguf", "I2_S-x86",
                      replace={GATE: (data, 36, (128, 64))})  # fmt: skip
    with pytest.raises(CheckpointError, match=f"{GATE} {named}"):
        read_all(file, "x86")


def test_a_file_that_was_cut_short_names_the_tensor(tmp_path: Path) -> None:
    file = write_gguf(tiny("bitnet"), tmp_path / "m.gguf")
    last = gguf.GGUFReader(file).tensors[-1].name
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match=f"ends inside tensor {last}"):
        read_all(file)


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"PK\3\4" + bytes(99), bytes(99)])
def test_what_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        read_all(tmp_path / "m.gguf")


def test_a_file_for_big_endian_machines(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(99))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_all(tmp_path / "m.gguf")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_all(tmp_path / "absent.gguf")
