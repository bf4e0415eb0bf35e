"""From the name of a model, as a person types it, to its weights."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint, CheckpointError
from .gguf import GGUFCheckpoint
from .hub import PREFIX, download
from .huggingface import HuggingFaceCheckpoint
from .random_weights import SHAPES, open_random

NANO = "nano"


def open_model(name: str, i2s_layout: str = "auto") -> Checkpoint:
    """Open a model; its weights are read, or generated, as they are asked for.

    Parameters
    ----------
    name : str
        ``nano`` (the model that comes with fabric), ``random:SIZE`` or ``random:SIZE:seed=N``
        (published shapes, see `random_weights.SHAPES`), the path of a Hugging Face folder, of a
        .gguf file or of an .onnx file, or ``hf://owner/name@revision`` for a folder or a .gguf file
        on the Hugging Face Hub (see `hub.download`).
    i2s_layout : {"auto", "x86", "arm"}
        How the I2_S tensors of a .gguf file lie.

    Raises
    ------
    CheckpointError
        Where there is no such model, or its files cannot be used.
    FabricError
        For a random model of unknown size, or an .onnx file where the onnx package is missing.
    """
    if name == NANO:
        return HuggingFaceCheckpoint(Path(__file__).parent / NANO, NANO)
    if name.startswith("random:"):
        return open_random(name)
    if name.startswith(PREFIX):
        fetched = download(name)
        if fetched.is_file():
            return GGUFCheckpoint(fetched, i2s_layout)
        repository = name.removeprefix(PREFIX).partition("@")[0]
        return HuggingFaceCheckpoint(fetched, repository.rpartition("/")[2])
    folder = Path(name).expanduser()
    if folder.suffix == ".gguf" and not folder.is_dir():
        return GGUFCheckpoint(folder, i2s_layout)
    if folder.suffix == ".onnx" and not folder.is_dir():
        # The onnx package is an extra, and takes a while to load.
        from .onnx_format import OnnxCheckpoint

        return OnnxCheckpoint(folder)
    if not (folder / "config.json").is_file():
        there = "has no config.json" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"There is no model {name!r}: it {there}.",
            f"Give {NANO}, a random:SIZE with one of {', '.join(SHAPES)}, the path of a "
            "downloaded Hugging Face model, of a .gguf or of an .onnx file, or hf://owner/name.",
        )
    return HuggingFaceCheckpoint(folder)
