"""What is no BitNet in an ONNX file, or a damaged one, is refused by name; nothing ever crashes."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.models import MODULES, CheckpointError, open_model
from bitfabric.models.onnx_format import OnnxOptions, export_onnx
from bitfabric.targets import FabricError
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_onnx_export import tiny

onnx = pytest.importorskip("onnx")
from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

Q = "model.layers.0.self_attn.q_proj"


@functools.cache
def exported(bits: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(num_layers=1)
        (path,) = export_onnx(model, Path(folder) / "m.onnx", OnnxOptions(bits))
        return path.read_bytes()


def read_all(path: Path) -> None:
    model = open_model(str(path))
    for layer in range(model.config.num_layers):
        for module in MODULES:
            model.ternary(layer, module)
    for name in model.config.norm_shapes():
        model.norm(name)
    model.embedding()
    model.head()


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def replace(model: ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    tensor = initializer(model, name)
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def node(model: ModelProto, kind: str, number: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == kind][number]


def insert_after(model: ModelProto, tensor: str, kind: str, *others: str) -> None:
    """Put a node between a tensor and those who take it."""
    for user in model.graph.node:
        for i, name in enumerate(user.input):
            if name == tensor:
                user.input[i] = f"{tensor}.changed"
    places = [i for i, n in enumerate(model.graph.node) if tensor in n.output]
    made = helper.make_node(kind, [tensor, *others], [f"{tensor}.changed"], name=f"added {kind}")
    model.graph.node.insert(places[0] + 1, made)


def changed(values: Any, place: Any, value: Any) -> Any:
    values[place] = value
    return values


def add(model: ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def end_of(model: ModelProto, module: str) -> str:
    """The scaled result of a projection."""
    scale = next(n for n in model.graph.node if f"{module}.weight_scale" in n.input)
    return next(n for n in model.graph.node if scale.output[0] in n.input).output[0]


def bias(model: ModelProto) -> None:
    insert_after(model, end_of(model, Q), "Add", add(model, "bias", np.ones(64, np.float32)))


def softcap(model: ModelProto) -> None:
    insert_after(model, node(model, "Softmax").input[0], "Tanh")


def another_scale_of_attention(model: ModelProto) -> None:
    replace(model, f"float_{float(np.float32(0.25))!r}", lambda _: np.float32(0.5))


def scaled_positions(model: ModelProto) -> None:
    replace(model, "model.rope.inv_freq", lambda v: changed(v, slice(4, None), v[4:] / 8))


def another_activation(model: ModelProto) -> None:
    node(model, "Relu").op_type = "Tanh"


def normed_queries(model: ModelProto) -> None:
    insert_after(model, end_of(model, Q), "Mul", add(model, "w", np.arange(64.0, dtype=np.float32)))


def no_first_norm(model: ModelProto) -> None:
    node(model, "ReduceMean").op_type = "ReduceMax"


def a_head_more(model: ModelProto) -> None:
    weight = add(model, "more", np.ones((64, 3), np.float32))
    model.graph.node.append(
        helper.make_node("MatMul", [node(model, "MatMul", -1).input[0], weight], ["x"], name="more")
    )


def another_description(model: ModelProto) -> None:
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"num_heads": 4', '"num_heads": 8')


def broken_description(model: ModelProto) -> None:
    model.metadata_props[0].value = "{"


REFUSALS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "not ternary": (
        lambda m: replace(m, f"{Q}.weight", lambda v: changed(v, (0, 0), 3)), "is not ternary"
    ),
    "zero": (lambda m: replace(m, f"{Q}.weight", np.zeros_like), "zero throughout"),
    "nan in a norm": (
        lambda m: replace(m, "model.final_norm.weight", lambda v: changed(v, 3, np.nan)),
        "final_norm.weight holds NaN",
    ),
    "nan in the embedding": (
        lambda m: replace(m, "model.embed_tokens.weight", lambda v: changed(v, (5, 5), np.inf)),
        "NaN or infinity",
    ),
    "a scale for each row": (
        lambda m: replace(m, f"{Q}.weight_scale", lambda v: np.arange(1, 65, dtype=np.float32)),
        "MatMulInteger",
    ),
    "a zero scale": (lambda m: replace(m, f"{Q}.weight_scale", np.zeros_like), "MatMulInteger"),
    "bias": (bias, "adds a bias"),
    "softcap": (softcap, "added Tanh|not attention as"),
    "attention scale": (another_scale_of_attention, "scaled by 0.5"),
    "rope scaling": (scaled_positions, "scaled, which fabric does not compute"),
    "activation": (another_activation, "feed-forward block with a gate"),
    "a norm of queries": (normed_queries, "between .*attention, is nothing that fabric"),
    "no norm": (no_first_norm, "one RMSNorm"),
    "a second head": (a_head_more, "'more'"),
    "a shape": (
        lambda m: replace(m, f"{Q}.weight", lambda v: v[:-16]), "takes 48 values, and 64 come"
    ),
    "a contradiction": (another_description, "contradicts its description in num_heads"),
    "no description": (broken_description, "description"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSALS))
def test_what_is_no_bitnet_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, words = REFUSALS[name]
    model = onnx.ModelProto.FromString(exported(8))
    change(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(FabricError, match=words):
        read_all(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "..\\w.bin", "C:\\w.bin", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    model = external(location, offset="0")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        read_all(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("offset", "length"),
    [("-64", "4096"), ("64", "4096"), ("0", "4095"), ("0", "9" * 12), ("x", "1"), ("0", "-1")],
)
def test_weights_that_are_not_all_there_are_refused(
    tmp_path: Path, offset: str, length: str
) -> None:
    (tmp_path / "w.bin").write_bytes(b"\1" * 4096)
    onnx.save(external("w.bin", offset=offset, length=length), tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is cut short"):
        read_all(tmp_path / "m.onnx")


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    onnx.save(external("gone.bin", offset="0"), tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"gone\.bin"):
        read_all(tmp_path / "m.onnx")


def external(location: str, **entries: str) -> ModelProto:
    model = onnx.ModelProto.FromString(exported(8))
    tensor = initializer(model, f"{Q}.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def opens_or_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content)
        with contextlib.suppress(FabricError):
            read_all(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(content: bytes) -> None:
    opens_or_is_refused(content)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([2, 8]), st.data())
def test_a_damaged_file_never_crashes(bits: int, data: st.DataObject) -> None:
    content = bytearray(exported(bits))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(content), len(content) // 2, 100]))
    opens_or_is_refused(bytes(content[:end]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.data())
def test_a_graph_put_together_wrongly_never_crashes(bits: int, data: st.DataObject) -> None:
    model = onnx.ModelProto.FromString(exported(bits))
    graph = model.graph
    place = data.draw(st.integers(0, len(graph.node) - 1))
    chosen, tensor = graph.node[place], data.draw(st.sampled_from(list(graph.initializer)))
    kind = data.draw(st.sampled_from(
        ["drop", "swap", "kind", "input", "attribute", "dims", "type", "huge", "outputs"]
    ))  # fmt: skip
    if kind == "drop":
        del graph.node[place]
    elif kind == "swap" and len(chosen.input) > 1:
        chosen.input[0], chosen.input[1] = chosen.input[1], chosen.input[0]
    elif kind == "kind":
        chosen.op_type = data.draw(st.sampled_from(sorted({n.op_type for n in graph.node})))
    elif kind == "input" and chosen.input:
        del chosen.input[-1]
    elif kind == "attribute" and chosen.attribute:
        chosen.attribute[0].i = data.draw(st.sampled_from([-(2**63), -1, 0, 7, 2**40, 2**63 - 1]))
    elif kind == "dims" and tensor.dims:
        tensor.dims[0] = data.draw(st.sampled_from([-1, 0, 1, 2**40, 2**62]))
    elif kind == "type":
        tensor.data_type = data.draw(st.integers(0, 30))
    elif kind == "huge":
        tensor.dims.extend([2**31, 2**31])
        tensor.ClearField("raw_data")
    elif kind == "outputs":
        del chosen.output[0]
    opens_or_is_refused(model.SerializeToString())
