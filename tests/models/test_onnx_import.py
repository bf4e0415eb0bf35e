"""Models in ONNX files, fabric's own and those of other tools, arrive with their exact weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import MODULES, Checkpoint, CheckpointError, RandomCheckpoint, open_model
from bitfabric.models.onnx_format import OnnxCheckpoint, OnnxOptions, export_onnx
from bitfabric.models.onnx_format.builder import GraphBuilder
from bitfabric.models.onnx_format.decoder import Decoder, graph_inputs, graph_outputs
from bitfabric.models.onnx_format.store import TensorStore
from bitfabric.runtime import Batch, TrainingEngine, open_bundle
from bitfabric.targets import get_target

from ..reference.folders import AUTOBITLINEAR, masters, packed, write_folder
from ..reference.torch_bitnet import TorchBitNet, random_adapter, steady_tokens
from .test_onnx_export import CONFIGS, tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
quantization = pytest.importorskip("onnxruntime.quantization")
import onnxruntime  # noqa: E402

from ..reference.onnx_exports import dequantised_llama, export  # noqa: E402
from ..reference.onnx_sessions import OnnxDecoder  # noqa: E402

# What transformers' own configuration says and a graph does not.
UNSEEN = ("family", "max_context", "bos_token_id", "eos_token_ids")


def assert_same_model(found: Checkpoint, model: Checkpoint, scales: float = 0.0) -> None:
    """Compare everything; `scales` is how far, relatively, a scale may be off."""
    config, expected = found.config.to_dict(), model.config.to_dict()
    assert {k: v for k, v in config.items() if k not in UNSEEN} == {
        k: v for k, v in expected.items() if k not in UNSEEN
    }
    for layer in range(model.config.num_layers):
        for module in MODULES:
            a, b = found.ternary(layer, module), model.ternary(layer, module)
            assert (a.codes == b.codes).all(), (layer, module)
            assert a.scale == pytest.approx(b.scale, rel=scales)
    for name in model.config.norm_shapes():
        assert (found.norm(name) == model.norm(name)).all()
    rows = slice(3, 17)
    assert (found.embedding(rows) == model.embedding(rows)).all()
    assert (found.head() == model.head()).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_our_own_export_comes_back_bit_for_bit(tmp_path: Path, name: str, bits: int) -> None:
    model = tiny(name)
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(bits))
    found = OnnxCheckpoint(path)
    assert_same_model(found, model)
    assert found.config == model.config
    assert found.notes == ()


@pytest.mark.parametrize("bits", [2, 8])
def test_it_is_the_graph_that_is_read_and_not_our_description(tmp_path: Path, bits: int) -> None:
    model = tiny()
    (path,) = export_onnx(model, tmp_path / "m.onnx", OnnxOptions(bits))
    proto = onnx.load(path)
    del proto.metadata_props[:]
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, path)
    assert_same_model(open_model(str(path)), model)


def test_an_export_of_nano_comes_back(tmp_path: Path) -> None:
    nano = open_model("nano")
    path = export_onnx(nano, tmp_path / "nano.onnx")[0]
    found = open_model(str(path))
    assert found.config == nano.config
    weight, expected = found.ternary(2, "gate_proj"), nano.ternary(2, "gate_proj")
    assert (weight.codes == expected.codes).all()
    assert np.float32(weight.scale) == np.float32(expected.scale)


@pytest.fixture(scope="module")
def bitnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published kind of BitNet, packed, one layer."""
    tensors = {
        name: tensor
        for name, tensor in masters("bitnet", torch.float32).items()
        if ".layers.1." not in name
    }
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half().float()
    folder = tmp_path_factory.mktemp("bitnet") / "m"
    return write_folder(
        folder, "bitnet", packed(tensors, inverted=False), AUTOBITLINEAR, num_hidden_layers=1
    )


@pytest.mark.slow
def test_a_bitnet_of_transformers_through_torchs_exporter(
    bitnet_folder: Path, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        bitnet_folder, dtype=torch.float32, attn_implementation="eager"
    )
    path = export(model.eval(), tmp_path / "model.onnx")
    found, expected = open_model(str(path)), open_model(str(bitnet_folder))
    assert_same_model(found, expected, scales=1e-6)
    assert isinstance(found, OnnxCheckpoint)
    assert found.notes == ()
    # The file itself, run by onnxruntime, says what was imported.
    reference = TorchBitNet(found)
    tokens = steady_tokens(reference, (1, 6))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": tokens.astype(np.int64), "attention_mask": np.ones((1, 6), np.int64)}
    logits = session.run(None, feeds)[0]
    np.testing.assert_allclose(logits, reference.logits(tokens).detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A Llama with dequantised ternary matrices through torch's exporter, and its checkpoint."""
    folder = tmp_path_factory.mktemp("llama")
    tensors = {n: t for n, t in masters("llama", torch.float32).items() if ".layers.1." not in n}
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                    "quantization_mode": "online"}  # fmt: skip
    model = open_model(
        str(write_folder(folder / "m", "llama", tensors, quantization, num_hidden_layers=1))
    )
    return model, export(dequantised_llama(model), folder / "onnx" / "model.onnx")


def test_dequantised_matrices_are_recognised_and_the_rest_is_said(
    llama: tuple[Checkpoint, Path],
) -> None:
    model, path = llama
    found = open_model(str(path))
    assert_same_model(found, model)
    assert isinstance(found, OnnxCheckpoint)
    assert "floating point" in found.notes[0]


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_onnxruntimes_dynamic_quantisation(
    llama: tuple[Checkpoint, Path], tmp_path: Path, kind: str
) -> None:
    model, path = llama
    quantized = tmp_path / "q.onnx"
    quantization.quantize_dynamic(
        path, quantized, weight_type=getattr(quantization.QuantType, kind),
        nodes_to_exclude=[head_node(path)], op_types_to_quantize=["MatMul"],
    )  # fmt: skip
    assert "MatMulInteger" in {node.op_type for node in onnx.load(quantized).graph.node}
    assert_same_model(open_model(str(quantized)), model, scales=1e-6)


def head_node(path: Path) -> str:
    return next(n for n in onnx.load(path).graph.node if "logits" in n.output).name


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_onnxruntimes_blocks_of_four_bits(
    llama: tuple[Checkpoint, Path], tmp_path: Path, form: str, symmetric: bool
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model, path = llama
    quantizer = MatMulNBitsQuantizer(
        onnx.load(path), block_size=32, is_symmetric=symmetric,
        nodes_to_exclude=[head_node(path)], op_types_to_quantize=("MatMul",),
        quant_format=quantization.QuantFormat[form],
    )  # fmt: skip
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "q.onnx")
    wanted = "MatMulNBits" if form == "QOperator" else "DequantizeLinear"
    assert wanted in {node.op_type for node in quantizer.model.model.graph.node}
    # An asymmetric quantiser of four bits moves the numbers themselves by up to a fifteenth.
    found = open_model(str(tmp_path / "q.onnx"))
    assert_same_model(found, model, scales=1e-6 if symmetric else 1 / 14.9)


def test_a_graph_that_onnxruntime_has_fused(llama: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    model, path = llama
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert_same_model(open_model(str(tmp_path / "fused.onnx")), model)


def test_files_beside_are_mapped_and_read(llama: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    model, path = llama
    onnx.save_model(
        onnx.load(path), tmp_path / "model.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=1024,
    )  # fmt: skip
    settings = {"eos_token_id": [7, 8], "bos_token_id": 1, "max_position_embeddings": 99}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = open_model(str(tmp_path / "model.onnx"))
    assert_same_model(found, model)
    assert found.config.eos_token_ids == (7, 8)
    assert (found.config.bos_token_id, found.config.max_context) == (1, 99)


@pytest.mark.slow
def test_an_imported_model_trains_like_the_original(bitnet_folder: Path, tmp_path: Path) -> None:
    original = open_model(str(bitnet_folder))
    export_onnx(original, tmp_path / "m.onnx", OnnxOptions(bits=4))
    model = open_model(str(tmp_path / "m.onnx"))
    options = CompileOptions(context=8, lora=LoraOptions(rank=4), head="f16")
    compile_model(model, get_target("cpu"), options, tmp_path / "m.fabric")
    engine = TrainingEngine(open_bundle(tmp_path / "m.fabric"))
    adapter = random_adapter(model.config, rank=4)
    reference = TorchBitNet(original, adapter, options.lora.scale)
    tokens = steady_tokens(reference, (1, 8), margin=2e-5)
    labels = np.roll(tokens, -1, axis=1)
    engine.load_adapter_tensors(adapter)
    batch = Batch(tokens, labels, np.zeros((1, 8), np.int32))
    loss = engine.accumulate(batch, 1 / 8, 0)
    assert loss == pytest.approx(reference.loss(tokens, labels).item(), rel=1e-4)
    engine.update(learning_rate=1e-2, step=1)
    assert engine.evaluate(batch) < loss


def test_an_import_can_be_exported_again(tmp_path: Path) -> None:
    model = RandomCheckpoint(tiny().config, seed=9, name="again")
    (first,) = export_onnx(model, tmp_path / "a.onnx", OnnxOptions(bits=8))
    (second,) = export_onnx(open_model(str(first)), tmp_path / "b.onnx", OnnxOptions(bits=2))
    tokens = steady_tokens(TorchBitNet(model), (1, 6), margin=2e-5)
    np.testing.assert_array_equal(OnnxDecoder(first)(tokens), OnnxDecoder(second)(tokens))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.onnx cannot be read"):
        open_model(str(tmp_path / "nothing.onnx"))


class GroupedDecoder(Decoder):
    """A decoder with onnxruntime's own attention operator, as its model builder writes it."""

    def _attention(self, layer: int, x: str) -> str:
        graph, config = self.graph, self.config
        x = self._norm(f"layers.{layer}.input_norm", x)
        shared = self._quantized(x, "q_proj")
        q, k, v = (self._linear(shared, layer, m) for m in ("q_proj", "k_proj", "v_proj"))
        size, places = config.head_dim, np.arange(config.max_context)[:, None]
        angles = places * config.rope_theta ** (-np.arange(0, size, 2) / size)
        tables = [
            graph.weight(name, table.astype(np.float32))
            for name, table in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles)))
        ]
        past = [f"past_key_values.{layer}.{name}" for name in ("key", "value")]
        mixed, *present = graph.op(
            "GroupQueryAttention", q, k, v, *past, "seqlens_k", "total", *tables, outputs=3,
            domain="com.microsoft", num_heads=config.num_heads, kv_num_heads=config.num_kv_heads,
            do_rotary=1,
        )  # fmt: skip
        for made, name in zip(present, ("key", "value"), strict=True):
            graph.op("Identity", made, output=f"present.{layer}.{name}")
        if config.attention_sub_norm:
            mixed = self._norm(f"layers.{layer}.attention_sub_norm", mixed)
        return self._linear(self._quantized(mixed, "o_proj"), layer, "o_proj")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_onnxruntimes_attention_operator(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    graph = GraphBuilder(TensorStore())
    GroupedDecoder(graph, model, bits=4, head="f16", adapters=()).write()
    used = {tensor for node in graph.nodes for tensor in node.input}
    int32 = onnx.TensorProto.INT32
    inputs = [value for value in graph_inputs(model.config) if value.name in used] + [
        onnx.helper.make_tensor_value_info("seqlens_k", int32, ["batch"]),
        onnx.helper.make_tensor_value_info("total", int32, []),
    ]
    built = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "g", inputs, graph_outputs(model.config), graph.initializers
        ),
        opset_imports=[
            onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=9,
    )  # fmt: skip
    onnx.save(built, tmp_path / "m.onnx")
    assert_same_model(open_model(str(tmp_path / "m.onnx")), model)

    reference = TorchBitNet(model)
    tokens = steady_tokens(reference, (1, 6), margin=2e-5)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    cache = np.zeros((1, model.config.num_kv_heads, 0, model.config.head_dim), np.float32)
    feeds = {value.name: cache for value in inputs if value.name.startswith("past")}
    feeds |= {
        "input_ids": tokens.astype(np.int64),
        "attention_mask": np.ones((1, 6), np.int64),
        "position_ids": np.arange(6)[None],
        "seqlens_k": np.array([5], np.int32),
        "total": np.array(6, np.int32),
    }
    logits = session.run(["logits"], {value.name: feeds[value.name] for value in inputs})[0]
    np.testing.assert_allclose(logits, reference.logits(tokens).detach(), rtol=1e-4, atol=1e-5)
