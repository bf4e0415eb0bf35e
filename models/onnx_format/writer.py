"""Writing a model, with its adapters, as an ONNX decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from onnx import ModelProto, helper

from ...targets import FabricError
from ..checkpoint import Checkpoint
from ..tokenizer_files import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER
from .builder import MICROSOFT, OPSET, GraphBuilder
from .decoder import Decoder, graph_inputs, graph_outputs
from .linear import Adapters
from .store import TensorStore, data_file, name_data_file, old_data_files, replacing

BITS = (2, 4, 8)
HEADS = ("f16", "int8")
CONFIG_KEY = "bitfabric.config"
ADAPTER_KEY = "bitfabric.adapters"
# The oldest file format that has everything here; older onnxruntimes read it too.
_IR_VERSION = 8
# Above this the weights go to a file beside: a protobuf ends at 2 GiB, and is read whole.
_INLINE_BYTES = 256 << 20
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class OnnxOptions:
    """How a model is stored.

    Attributes
    ----------
    bits : int
        Bits of a ternary weight: 2 (smallest, and fastest in decoding), 4 (for onnxruntimes
        without 2-bit kernels) or 8 (standard operators alone, for any ONNX runtime).
    head : str
        ``f16``, or ``int8`` with one scale a row: embedding and output head.
    """

    bits: int = 2
    head: str = "f16"

    @property
    def runs_on_standard_operators(self) -> bool:
        """Whether the file needs no operator of onnxruntime's own."""
        return self.bits == 8

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.head not in HEADS:
            raise FabricError(
                f"ONNX weights of {self.bits} bits with a {self.head} head are not supported.",
                f"Use one of {BITS} bits and one of the heads {', '.join(HEADS)}.",
            )


def export_onnx(
    model: Checkpoint,
    path: Path,
    options: OnnxOptions | None = None,
    adapters: Adapters = (),
    progress: Callable[[float], None] | None = None,
) -> list[Path]:
    """Write a model as an ONNX decoder with a key-value cache; see `decoder` for its inputs.

    Parameters
    ----------
    model : Checkpoint
        Read one tensor at a time; the weights of a large model are never all in memory.
    path : pathlib.Path
        The file to make or replace, atomically. Where the weights are large they go to a file
        beside it, whose name holds their hash; the tokenizer's files go beside it as well.
    options : OnnxOptions, optional
    adapters : sequence
        LoRA adapters as `InferenceEngine` takes them, kept apart from the ternary weights.
    progress : callable, optional
        Told the fraction done.

    Returns
    -------
    list of pathlib.Path
        Every file written, the model first.

    Raises
    ------
    FabricError
        Where a value cannot be stored as asked, or the folder holds another model's tokenizer.
    """
    options = options or OnnxOptions()
    texts = _tokenizer_texts(model, path.parent)
    old = old_data_files(path)
    scratch = data_file(path, "partial")
    with ExitStack() as stack:
        beside = None
        if _estimated_bytes(model, options, adapters) > _INLINE_BYTES:
            beside = stack.enter_context(replacing(scratch))
        store = TensorStore(beside)
        onnx_model = _model(model, store, options, adapters, progress)
    written = [path]
    if beside is not None:
        data = data_file(path, store.digest)
        scratch.replace(data)
        name_data_file(onnx_model, data.name)
        written.append(data)
    with replacing(path) as file:
        file.write(onnx_model.SerializeToString())
    for stale in old.difference(written):
        stale.unlink(missing_ok=True)
    for name, content in texts.items():
        with replacing(path.with_name(name)) as file:
            file.write(content)
        written.append(path.with_name(name))
    return written


def _model(
    model: Checkpoint,
    store: TensorStore,
    options: OnnxOptions,
    adapters: Adapters,
    progress: Callable[[float], None] | None,
) -> ModelProto:
    """Build the model; its large tensors go to `store` on the way."""
    graph = GraphBuilder(store)
    Decoder(graph, model, options.bits, options.head, adapters).write(progress)
    config = model.config
    domains = [helper.make_opsetid("", OPSET)]
    if not options.runs_on_standard_operators:
        domains.append(helper.make_opsetid(MICROSOFT, 1))
    built = helper.make_model(
        helper.make_graph(
            graph.nodes, "bitnet", graph_inputs(config), graph_outputs(config), graph.initializers
        ),
        opset_imports=domains,
        ir_version=_IR_VERSION,
        producer_name="bitfabric",
        producer_version=version("bitfabric"),
    )
    properties = {CONFIG_KEY: json.dumps(config.to_dict()), ADAPTER_KEY: str(len(adapters))}
    helper.set_model_props(built, properties)
    return built


def _estimated_bytes(model: Checkpoint, options: OnnxOptions, adapters: Adapters) -> int:
    """Give about how many bytes the tensors take."""
    config = model.config
    tables = config.parameters - config.linear_parameters
    return (
        config.linear_parameters * options.bits // 8
        + tables * (2 if options.head == "f16" else 1)
        + sum(tensor.nbytes for tensors, _ in adapters for tensor in tensors.values())
    )


def _tokenizer_texts(model: Checkpoint, folder: Path) -> dict[str, bytes]:
    """Give the tokenizer's files by name, refusing to replace those of another model."""
    files = model.tokenizer_files
    texts = {name: files[name] for name in (TOKENIZER, CHAT_TEMPLATE) if name in files}
    if SPECIAL_TOKENS in files:
        texts[_TOKENIZER_CONFIG] = files[SPECIAL_TOKENS]
    if other := [
        name
        for name, content in texts.items()
        if (folder / name).is_file() and (folder / name).read_bytes() != content
    ]:
        raise FabricError(
            f"{folder} already holds another model's {other[0]}.",
            "Write the ONNX file into a folder of its own.",
        )
    return texts
