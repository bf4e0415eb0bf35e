"""The thin side: opens a bundle, trains and runs it, on TVM's runtime library alone."""

from .batch import Batch
from .budget import inference_engine, training_engine
from .bundle import Bundle, open_bundle
from .engine import TrainingEngine
from .inference import InferenceEngine

__all__ = [
    "Batch",
    "Bundle",
    "InferenceEngine",
    "TrainingEngine",
    "inference_engine",
    "open_bundle",
    "training_engine",
]
