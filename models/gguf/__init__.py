"""GGUF files, read and written without any other package: header, blocks, tokenizer, models."""

from .blocks import LAYOUTS, pack_i2_s, pack_tq1_0, pack_tq2_0
from .checkpoint import GGUFCheckpoint
from .export import TYPES, export_gguf
from .header import GGUFError, GGUFFile, TensorEntry, open_gguf
from .writer import Block, write_gguf

__all__ = [
    "LAYOUTS",
    "TYPES",
    "Block",
    "GGUFCheckpoint",
    "GGUFError",
    "GGUFFile",
    "TensorEntry",
    "export_gguf",
    "open_gguf",
    "pack_i2_s",
    "pack_tq1_0",
    "pack_tq2_0",
    "write_gguf",
]
