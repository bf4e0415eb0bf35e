"""ONNX files in and out: BitNet decoders with a key-value cache, and models of other exporters."""

from ...targets import FabricError

try:
    import onnx  # noqa: F401
except ImportError as error:
    raise FabricError(
        "ONNX files need the package onnx, which is not installed.",
        'Install it with: pip install "bitfabric[onnx]"',
    ) from error

from .checkpoint import OnnxCheckpoint
from .linear import Adapters
from .writer import OnnxOptions, export_onnx

__all__ = ["Adapters", "OnnxCheckpoint", "OnnxOptions", "export_onnx"]
