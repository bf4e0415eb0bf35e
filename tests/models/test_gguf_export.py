"""An exported GGUF file is read by the package `gguf`, and gives the model back bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from bitfabric.cli import export_gguf as export_gguf_command
from bitfabric.models import MODULES, Checkpoint, CheckpointError, open_model
from bitfabric.models.gguf import TYPES, GGUFError, export_gguf
from bitfabric.models.gguf.names import ARCHITECTURES
from gguf import GGMLQuantizationType as Type

from ..reference.gguf_files import GGUF_MODULES, Tiny, permuted, tiny, write_hf

KINDS = list(TYPES)
EXPORTED = {"bitnet": "bitnet", "1bitllm": "bitnet", "llama": "llama"}


def folder_of(model: Tiny, tmp_path: Path) -> Checkpoint:
    """A packed folder whose scales are float32s that float16 does not have."""
    model.scales = {key: float(np.float32(scale * 1.0001)) for key, scale in model.scales.items()}
    return open_model(str(write_hf(model, tmp_path / "hf")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", list(EXPORTED))
def test_the_model_comes_back(tmp_path: Path, family: str, kind: str) -> None:
    original = folder_of(tiny(family, hidden=256, ffn=320), tmp_path)
    counts = export_gguf(original, tmp_path / "m.gguf", kind)
    assert kind in counts
    back = open_model(str(tmp_path / "m.gguf"))
    assert back.config == original.config
    for layer in range(2):
        for module in MODULES:
            want, got = original.ternary(layer, module), back.ternary(layer, module)
            assert np.array_equal(got.codes, want.codes)
            assert got.scale == want.scale
    for name in back.config.norm_shapes():
        assert np.array_equal(back.norm(name), original.norm(name))
    assert np.array_equal(back.embedding(), original.embedding())
    assert np.array_equal(back.head(), original.head())


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_dequantises_the_same_matrices(tmp_path: Path, kind: str) -> None:
    source = tiny("llama", hidden=256, ffn=320)
    export_gguf(folder_of(source, tmp_path), tmp_path / "m.gguf", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for (layer, module), codes in source.codes.items():
        tensor = tensors[f"blk.{layer}.{GGUF_MODULES[module]}.weight"]
        # The rows of down_proj are 320 long, which no block of 256 fits.
        assert tensor.tensor_type == (Type.F16 if module == "down_proj" else Type[kind])
        if module in ("q_proj", "k_proj"):
            codes = permuted(codes, {"q_proj": 4, "k_proj": 2}[module])
        want = codes * np.float32(np.float16(source.scales[layer, module]))
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), want)


def test_the_metadata_is_what_programs_ask_for(tmp_path: Path) -> None:
    export_gguf(open_model("nano"), tmp_path / "m.gguf", "TQ1_0")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    values = {name: field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "bitnet",
        "general.type": "model",
        "general.name": "nano",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_TQ1_0),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "bitnet.hidden_activation": "relu2",
        "bitnet.context_length": 1024,
        "bitnet.embedding_length": 384,
        "bitnet.block_count": 8,
        "bitnet.feed_forward_length": 1024,
        "bitnet.attention.head_count": 6,
        "bitnet.attention.head_count_kv": 2,
        "bitnet.rope.dimension_count": 64,
        "bitnet.rope.freq_base": 10000.0,
        "bitnet.vocab_size": 8192,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "refact",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert {key: values[key] for key in expected} == expected
    assert values["bitnet.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert len(values["tokenizer.ggml.tokens"]) == 8192
    assert "messages" in values["tokenizer.chat_template"]
    types = values["tokenizer.ggml.token_type"]
    assert types[:3] == [gguf.TokenType.CONTROL] * 3
    assert set(types[3:]) == {gguf.TokenType.NORMAL}
    # Each key is one that the package knows, or that llama.cpp reads, or ours alone.
    assert {key.partition(".")[0] for key in values} == {"GGUF", "general", "bitnet", "tokenizer",
                                                         "bitfabric"}  # fmt: skip


def test_the_command_offers_what_there_is() -> None:
    assert tuple(TYPES) == export_gguf_command.TYPES
    assert set(export_gguf_command.ARCHITECTURES) == set(ARCHITECTURES)


def test_file_types_are_those_of_the_package() -> None:
    for kind, number in TYPES.items():
        assert number == gguf.LlamaFileType[f"MOSTLY_{kind}"]


def test_a_scale_that_was_edited_in_the_file_wins(tmp_path: Path) -> None:
    """Our float32 scales count only where they round to what the blocks say."""
    source = tiny("bitnet")
    export_gguf(folder_of(source, tmp_path), tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors
                  if t.name == "blk.0.ffn_up.weight")  # fmt: skip
    blocks = np.frombuffer(content, np.uint8, tensor.n_bytes, tensor.data_offset).reshape(-1, 66)
    blocks[:, 64:] = np.float16([0.75]).view(np.uint8)
    (tmp_path / "m.gguf").write_bytes(content)
    edited = open_model(str(tmp_path / "m.gguf"))
    assert edited.ternary(0, "up_proj").scale == 0.75
    assert edited.ternary(1, "up_proj").scale == source.scales[1, "up_proj"]


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    export_gguf(folder_of(tiny("bitnet"), tmp_path), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "no_vocab"
    assert open_model(str(tmp_path / "m.gguf")).tokenizer_files == {}


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_for_the_programs_that_only_know_relu2(tmp_path: Path, architecture: str) -> None:
    model = folder_of(tiny("bitnet"), tmp_path)
    export_gguf(model, tmp_path / "m.gguf", architecture=architecture)
    assert open_model(str(tmp_path / "m.gguf")).config == model.config


@pytest.mark.parametrize(
    ("family", "changes", "architecture", "named"),
    [
        ("1bitllm", {}, "bitnet-b1.58", "computes relu2, not silu"),
        ("bitnet", {}, "llama", "llama has other norms"),
        ("llama", {}, "bitnet", "bitnet has other norms"),
        ("llama", {"hidden_act": "relu2"}, None, "computes silu, not relu2"),
        ("bitnet", {"tie_word_embeddings": False}, None, "the embedding as the head"),
        ("bitnet", {}, "mamba", "no architecture 'mamba'"),
    ],
)
def test_what_no_program_would_compute(
    tmp_path: Path, family: str, changes: dict, architecture: str | None, named: str
) -> None:
    model = folder_of(tiny(family, **changes), tmp_path)
    with pytest.raises(GGUFError, match=named):
        export_gguf(model, tmp_path / "m.gguf", architecture=architecture)
    assert not (tmp_path / "m.gguf").exists()


def test_a_scale_beyond_float16(tmp_path: Path) -> None:
    source = tiny("bitnet")
    source.scales[1, "o_proj"] = 1e-7
    model = open_model(str(write_hf(source, tmp_path / "hf")))
    with pytest.raises(GGUFError, match="of o_proj in layer 1 is beyond float16"):
        export_gguf(model, tmp_path / "m.gguf")


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    source = tiny("bitnet")
    source.others["model.embed_tokens.weight"][49, 0] = 1e6
    model = open_model(str(write_hf(source, tmp_path / "hf")))
    (tmp_path / "m.gguf").write_text("old")
    with pytest.raises(CheckpointError, match=r"token_embd\.weight holds numbers beyond"):
        export_gguf(model, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"m.gguf", "hf"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = folder_of(tiny("bitnet"), tmp_path)
    with pytest.raises(GGUFError, match="could not be written"):
        export_gguf(model, tmp_path / "file" / "m.gguf")
