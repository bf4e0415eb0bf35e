"""The architecture as Relax functions: one layer and its neighbours, then whole steps."""

from .inference import add_inference
from .layer import (
    Formats,
    HeadFormat,
    TensorSpec,
    attention_shape,
    head_tensors,
    layer_span,
    layer_tensors,
    rope_width,
)
from .streaming import add_layer_prefill, add_layer_steps, add_row_embedding
from .training import KEPT, TrainingShape, activation_widths, add_steps, training_functions

__all__ = [
    "KEPT",
    "Formats",
    "HeadFormat",
    "TensorSpec",
    "TrainingShape",
    "activation_widths",
    "add_inference",
    "add_layer_prefill",
    "add_layer_steps",
    "add_row_embedding",
    "add_steps",
    "attention_shape",
    "head_tensors",
    "layer_span",
    "layer_tensors",
    "rope_width",
    "training_functions",
]
