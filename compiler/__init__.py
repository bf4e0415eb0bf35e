"""The pipeline from a model to a bundle: graph, adjoints, schedules, lowering, linking, sealing."""

from ..models.lora import LoraOptions
from .compile import compile_model
from .estimate import Estimate, estimate
from .options import CompileOptions

__all__ = ["CompileOptions", "Estimate", "LoraOptions", "compile_model", "estimate"]
