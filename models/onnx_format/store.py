"""Tensors of an ONNX model on their way to disk: inside the file, or streamed beside it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper

ALIGNMENT = 4096
"""Bytes; a tensor beside the model starts at a multiple of it, so that it can be mapped."""
_DATA_SUFFIX = "onnx_data"


class TensorStore:
    """Takes tensors one at a time.

    Parameters
    ----------
    file : binary file, optional
        Where the bytes go; without one they stay in the model.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def tensor(self, name: str, array: npt.NDArray[Any]) -> TensorProto:
        """Keep or write an array; give the initialiser that stands for it."""
        stored = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
        )
        if self._file is None or array.nbytes < ALIGNMENT:
            tensor.raw_data = stored.tobytes()
            return tensor
        self._write(b"\0" * (-self._file.tell() % ALIGNMENT))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", self._file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._write(np.ascontiguousarray(stored).data)
        return tensor

    @property
    def digest(self) -> str:
        """The start of the SHA-256 of everything written."""
        return self._digest.hexdigest()[:12]

    def _write(self, data: Any) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under a hidden name; it takes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def name_data_file(model: ModelProto, location: str) -> None:
    """Tell the model's tensors in which file, beside its own, their bytes are."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.external_data.add(key="location", value=location)


def data_file(path: Path, digest: str) -> Path:
    """Give the name of the tensors' file of a model; another content has another name.

    So an export over an older one never touches the file that the older one needs: whenever it is
    stopped, the model's file names a data file that is whole.
    """
    return path.with_name(f"{path.stem}.{digest}.{_DATA_SUFFIX}")


def old_data_files(path: Path) -> set[Path]:
    """Give the data files, named as ours are, of the model at `path`, if there is one."""
    ours = re.compile(rf"{re.escape(path.stem)}\.[0-9a-f]{{12}}\.{_DATA_SUFFIX}")
    found: set[Path] = set()
    with suppress(OSError, DecodeError):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            found.update(
                path.with_name(entry.value)
                for entry in tensor.external_data
                if entry.key == "location" and ours.fullmatch(entry.value)
            )
    return found
