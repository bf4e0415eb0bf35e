"""What a model is: its configuration, its weights from any source, its graph."""

from .checkpoint import Checkpoint, CheckpointError, TernaryWeight
from .config import MODULES, ModelConfig
from .random_weights import RandomCheckpoint
from .source import open_model

__all__ = [
    "MODULES",
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "RandomCheckpoint",
    "TernaryWeight",
    "open_model",
]
