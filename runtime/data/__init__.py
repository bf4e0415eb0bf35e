"""Data files to micro-batches: records, documents, rows."""

from .dataset import Dataset, Order, dropout_seed
from .documents import LOSS_ON, Corpus, CorpusOptions, read_corpus
from .packing import pack
from .records import DataError, read_records

__all__ = [
    "LOSS_ON",
    "Corpus",
    "CorpusOptions",
    "DataError",
    "Dataset",
    "Order",
    "dropout_seed",
    "pack",
    "read_corpus",
    "read_records",
]
