"""The pipeline from a model to a bundle: graph, adjoints, schedules, lowering, linking, sealing."""

from ..models.lora import LoraOptions
from .compile import compile_model
from .options import CompileOptions

__all__ = ["CompileOptions", "LoraOptions", "compile_model"]
