"""Adapters as GGUF: what the gguf library sees, exact round trips, the order of rows, refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.adapter import load_adapter, read_adapter
from bitfabric.runtime.files import FileError
from bitfabric.runtime.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from bitfabric.runtime.gguf_base import Base, base_of_config, base_of_gguf
from bitfabric.runtime.gguf_file import GgufFile
from bitfabric.runtime.low_rank import AdapterError, LowRank, adapter_shapes, tensor_name
from bitfabric.runtime.peft_adapter import read_peft, target_modules, write_peft
from hypothesis import given, settings
from hypothesis import strategies as st

from .toy import ToyBundle

gguf = pytest.importorskip("gguf")

LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
}
BITNET = {**LLAMA, "attention_sub_norm": True, "activation": "relu2"}


def adapter_of(config: dict[str, Any], rank: int = 3, **changes: Any) -> LowRank:
    generator = np.random.default_rng(rank)
    tensors = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in adapter_shapes(config, rank).items()
    }
    return LowRank(Path("made"), tensors, rank, alpha=7.0, **changes)


def same(left: LowRank, right: LowRank) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        assert tensor.dtype == right.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensor, right.tensors[name])
    fields = ("rank", "alpha", "rslora", "dropout", "base", "provenance", "scale")
    for field in fields:
        assert getattr(left, field) == getattr(right, field), field


@pytest.mark.parametrize("config", [LLAMA, BITNET], ids=["llama", "bitnet"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_to_gguf_to_peft_gives_the_same_bytes(
    config: dict[str, Any], rslora: bool, tmp_path: Path
) -> None:
    made = adapter_of(config, rslora=rslora, dropout=0.1, base="tiny", provenance='{"step": 9}')
    modules = target_modules(made, config["num_layers"])
    write_peft(tmp_path / "one", made, modules)
    write_gguf_adapter(tmp_path / "a.gguf", read_peft(tmp_path / "one"), base_of_config(config))
    back = read_gguf_adapter(tmp_path / "a.gguf")  # The number of heads stands in the file.
    same(back, made)
    write_peft(tmp_path / "two", back, target_modules(back))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("rslora", [False, True])
def test_the_gguf_library_reads_what_llama_cpp_asks_for(tmp_path: Path, rslora: bool) -> None:
    made = adapter_of(BITNET, rank=4, rslora=rslora)
    write_gguf_adapter(tmp_path / "a.gguf", made, base_of_config(BITNET))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == gguf.GGUFType.ADAPTER
    assert fields["general.architecture"] == "bitnet"
    assert fields["adapter.type"] == "lora"
    kinds = {name: field.types[0] for name, field in reader.fields.items()}
    assert kinds["adapter.lora.alpha"] == gguf.GGUFValueType.FLOAT32
    # The only scale that llama.cpp knows is alpha / rank, with the rank from lora_b's first extent.
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    rank = int(tensors["blk.0.attn_q.weight.lora_b"].shape[0])
    assert fields["adapter.lora.alpha"] / rank == pytest.approx(made.scale, rel=1e-6)
    assert len(tensors) == 2 * 7 * 3
    # ggml's extents are innermost first: [in, rank] and [rank, out].
    assert tensors["blk.2.ffn_down.weight.lora_a"].shape.tolist() == [40, 4]
    assert tensors["blk.2.ffn_down.weight.lora_b"].shape.tolist() == [4, 24]
    stored = tensors["blk.1.attn_output.weight.lora_b"].data
    np.testing.assert_array_equal(stored, made.tensors[tensor_name(1, "o_proj", "B")])


def pairwise_rotation(x: Any, positions: Any, theta: float) -> Any:
    """Rotate neighbouring pairs as complex numbers; x is [tokens, heads, d]."""
    torch = pytest.importorskip("torch")
    size = x.shape[-1]
    angles = positions[:, None] / theta ** (torch.arange(0, size, 2) / size)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    turned = turned * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def test_llama_rows_fit_a_rotation_of_pairs(tmp_path: Path) -> None:
    """Attention scores of transformers' Llama equal those of GGUF's convention with our file."""
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads, kv_heads, size, theta = 4, 2, 6, 100.0
    made = adapter_of(LLAMA)
    write_gguf_adapter(tmp_path / "a.gguf", made, base_of_config(LLAMA))
    stored = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    torch.manual_seed(0)
    x, positions = torch.randn(5, 24), torch.arange(5.0)
    angles = positions[:, None] / theta ** (torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], -1)[None]

    # Where the converter of base models puts a head's row: 0, d/2, 1, d/2 + 1, ...
    place = [half * size // 2 + j for j in range(size // 2) for half in range(2)]
    scores = {}
    for module, name, count in (("q_proj", "attn_q", heads), ("k_proj", "attn_k", kv_heads)):
        weight = torch.randn(count * size, 24)
        a, b = (torch.tensor(made.tensors[tensor_name(1, module, f)]) for f in "AB")
        theirs = (x @ weight.T + made.scale * x @ a.T @ b.T).reshape(1, 5, count, size)
        rows = [head * size + row for head in range(count) for row in place]
        a, b = (stored[f"blk.1.{name}.weight.lora_{f}"] for f in "ab")
        ours = (x @ weight[rows].T + made.scale * x @ a.T @ b.T).reshape(5, count, size)
        scores[module] = theirs.transpose(1, 2), pairwise_rotation(ours, positions, theta)
    q, k = apply_rotary_pos_emb(
        scores["q_proj"][0], scores["k_proj"][0], angles.cos(), angles.sin()
    )
    expected = q[0] @ k[0].repeat_interleave(2, 0).transpose(-1, -2)
    q, k = scores["q_proj"][1], scores["k_proj"][1].repeat_interleave(2, 1)
    actual = torch.einsum("ihd,jhd->hij", q, k)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def write_foreign(path: Path, made: LowRank, kind: str = "F32", **changes: Any) -> Path:
    """Write an adapter of the architecture bitnet with the gguf library, as other tools do."""
    values = {"general.type": "adapter", "adapter.type": "lora", **changes}
    writer = gguf.GGUFWriter(path, values.pop("arch", "bitnet"))
    for key, value in values.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(key, value)
    names = {"q_proj": "attn_q", "down_proj": "ffn_down"}
    for (layer, module), name in ((p, names.get(p[1])) for p in made.places):
        for factor in "AB":
            tensor = made.tensors[tensor_name(layer, module, factor)]
            if name is not None:
                stored = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType[kind])
                writer.add_tensor(
                    f"blk.{layer}.{name}.weight.lora_{factor.lower()}", stored,
                    raw_dtype=gguf.GGMLQuantizationType[kind],
                )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_files_of_other_tools_are_read_in_every_type_they_write(tmp_path: Path, kind: str) -> None:
    config = {**BITNET, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "head_dim": 32}
    made = adapter_of(config, rank=32)
    path = write_foreign(tmp_path / "a.gguf", made, kind, **{"adapter.lora.alpha": 16.0})
    read = read_adapter(path)
    assert read.scale == 0.5
    assert read.modules == ["q_proj", "down_proj"]
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for layer in range(3):
        raw = reader[f"blk.{layer}.ffn_down.weight.lora_b"]
        expected = gguf.quants.dequantize(raw.data, raw.tensor_type)
        np.testing.assert_array_equal(read.tensors[tensor_name(layer, "down_proj", "B")], expected)


def test_without_an_alpha_the_scale_is_one_as_in_llama_cpp(tmp_path: Path) -> None:
    made = adapter_of(BITNET)
    assert read_adapter(write_foreign(tmp_path / "a.gguf", made)).scale == 1.0
    zero = write_foreign(tmp_path / "b.gguf", made, **{"adapter.lora.alpha": 0.0})
    assert read_adapter(zero).scale == 1.0


def test_an_alpha_that_was_changed_elsewhere_counts(tmp_path: Path) -> None:
    made = adapter_of(BITNET, rslora=True)
    origin = {"alpha": 7.0, "rslora": True, "dropout": 0.0, "base": "", "provenance": ""}
    changed = {"adapter.lora.alpha": 3.0, "bitfabric.adapter": json.dumps(origin)}
    read = read_adapter(write_foreign(tmp_path / "a.gguf", made, **changed))
    assert (read.scale, read.rslora) == (1.0, False)


def test_llama_rows_without_a_number_of_heads_need_the_base(tmp_path: Path) -> None:
    made = adapter_of(LLAMA)
    path = write_foreign(tmp_path / "a.gguf", made, arch="llama")
    with pytest.raises(AdapterError, match="number of heads") as caught:
        read_adapter(path)
    assert "--base" in caught.value.remedy
    read = read_adapter(path, base_of_config(LLAMA))
    again = tmp_path / "again.gguf"
    write_gguf_adapter(again, read, base_of_config(LLAMA))
    name = "blk.1.attn_q.weight.lora_b"
    np.testing.assert_array_equal(GgufFile(again).floats(name), GgufFile(path).floats(name))


def test_the_base_may_be_a_gguf_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert base_of_gguf(tmp_path / "base.gguf") == Base("llama", LLAMA)


def bundle_of(config: dict[str, Any], modules: list[str]) -> ToyBundle:
    lora = {**ToyBundle().lora, "modules": modules, "rank": 4, "scale": 2.0}
    return dataclasses.replace(ToyBundle(), config=config, lora=lora)


def test_a_bundle_takes_gguf_adapters_like_folders(tmp_path: Path) -> None:
    made = adapter_of(LLAMA)
    write_peft(tmp_path / "folder", made, target_modules(made))
    write_gguf_adapter(tmp_path / "a.gguf", made, base_of_config(LLAMA))
    bundle = bundle_of(LLAMA, target_modules(made))
    folder = load_adapter(f"{tmp_path}/folder:0.25", bundle)
    file = load_adapter(f"{tmp_path}/a.gguf:0.25", bundle)
    assert file.scale == folder.scale == pytest.approx(0.25 * 7 / 3)
    for name, tensor in folder.tensors.items():
        np.testing.assert_array_equal(file.tensors[name], tensor)


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (bundle_of(BITNET, ["q_proj"]), "for a model of the architecture llama"),
        (bundle_of(LLAMA, ["q_proj", "k_proj"]), "changes .*v_proj.* no place for"),
        (
            bundle_of({**LLAMA, "num_layers": 2}, list(target_modules(adapter_of(LLAMA)))),
            "layers.2",
        ),
        (bundle_of({**LLAMA, "hidden_size": 32}, list(target_modules(adapter_of(LLAMA)))), "needs"),
        (bundle_of({**LLAMA, "num_heads": 5}, ["q_proj"]), "5 heads cannot share"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    tmp_path: Path, bundle: ToyBundle, words: str
) -> None:
    write_gguf_adapter(tmp_path / "a.gguf", adapter_of(LLAMA), base_of_config(LLAMA))
    with pytest.raises(AdapterError, match=words):
        load_adapter(str(tmp_path / "a.gguf"), bundle)


def test_tensors_that_contradict_each_other_are_refused_by_name(tmp_path: Path) -> None:
    made = adapter_of(BITNET)
    a, b = tensor_name(0, "q_proj", "A"), tensor_name(0, "q_proj", "B")
    alone = {a: made.tensors[a]}
    other = {**made.tensors, a: made.tensors[a][:2]}
    spoiled = {**made.tensors, b: np.full_like(made.tensors[b], np.nan)}
    cases = {"has .*lora_A but no": alone, "not of the adapter's rank 3": other, "NaN": spoiled}
    for words, tensors in cases.items():
        with pytest.raises(AdapterError, match=words):
            dataclasses.replace(made, tensors=tensors).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.type": "model"}, "no LoRA adapter"),
        ({"adapter.type": "dora"}, "no LoRA adapter"),
        ({"arch": "gpt2"}, "architecture 'gpt2'"),
    ],
)
def test_what_is_no_lora_adapter_is_refused(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    path = write_foreign(tmp_path / "a.gguf", adapter_of(BITNET), **changes)
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 6000), at=st.integers(0, 2500), value=st.integers(0, 255))
def test_a_damaged_file_is_an_error_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        folder.mkdir()
        write_gguf_adapter(folder / "whole.gguf", adapter_of(BITNET), base_of_config(BITNET))
    content = bytearray((folder / "whole.gguf").read_bytes())
    content[at] = value
    del content[len(content) - cut :]
    path = folder / "broken.gguf"
    path.write_bytes(content)
    with contextlib.suppress(AdapterError, FileError):
        read_gguf_adapter(path)


def test_peft_loads_what_came_back_from_gguf(tmp_path: Path) -> None:
    """Also where the layers differ in their modules, which PEFT is told by full paths."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    whole = adapter_of(LLAMA)
    some = {n: t for n, t in whole.tensors.items() if "q_proj" in n or ".layers.1.mlp.down" in n}
    made = dataclasses.replace(whole, tensors=some)
    write_gguf_adapter(tmp_path / "a.gguf", made, base_of_config(LLAMA))
    back = read_gguf_adapter(tmp_path / "a.gguf")
    write_peft(tmp_path / "back", back, target_modules(back, 3))
    config = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, vocab_size=11,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "back")
    loaded = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
    assert len(loaded) == len(some) == 8
    for name, tensor in some.items():
        key = f"base_model.model.{name}.default.weight"
        np.testing.assert_array_equal(loaded[key].detach().numpy(), tensor)
    layer = wrapped.base_model.model.model.layers[1].mlp.down_proj
    assert layer.scaling["default"] == pytest.approx(made.scale)
