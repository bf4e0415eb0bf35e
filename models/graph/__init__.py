"""The architecture as Relax functions: one layer and its neighbours, then whole steps."""

from .inference import add_inference
from .layer import HeadFormat, TensorSpec, head_tensors, layer_tensors
from .streaming import add_layer_prefill, add_layer_steps
from .training import TrainingShape, add_steps, training_functions

__all__ = [
    "HeadFormat",
    "TensorSpec",
    "TrainingShape",
    "add_inference",
    "add_layer_prefill",
    "add_layer_steps",
    "add_steps",
    "head_tensors",
    "layer_tensors",
    "training_functions",
]
