"""The thin side: opens a bundle, trains and runs it, on TVM's runtime library alone."""

from .batch import Batch
from .bundle import Bundle, open_bundle
from .engine import TrainingEngine
from .inference import InferenceEngine

__all__ = ["Batch", "Bundle", "InferenceEngine", "TrainingEngine", "open_bundle"]
