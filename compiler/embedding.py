"""What a program of one's own needs to run a bundle with TVM's C++ runtime: ``embed/``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..models import ModelConfig
from ..models.lora import LoraOptions, adapter_layout

EXAMPLE = Path(__file__).with_name("generate.cc")
CAPACITY = 528
"""Tokens that the example's sequence can grow to: an odd number of vectors of 16."""
_DEVICES = {
    "cpu": "kDLCPU",
    "cuda": "kDLCUDA",
    "metal": "kDLMetal",
    "opencl": "kDLOpenCL",
    "rocm": "kDLROCM",
    "vulkan": "kDLVulkan",
}

_HEADER = """\
// The tensors and sizes of {name}, for generate.cc. Offsets and sizes are in bytes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <vector>

struct WeightTensor {{
  const char* dtype;
  std::vector<int64_t> shape;
  size_t offset;
  size_t bytes;
}};
struct CacheTensor {{
  const char* dtype;
  std::vector<int64_t> shape;
}};
struct WeightFile {{
  const char* path;
  std::vector<WeightTensor> tensors;
}};

constexpr DLDevice kDevice{{{device}, 0}};
constexpr const char* kBackend = "{backend}";  // The library of the device, "" for a processor.
constexpr int64_t kVocabulary = {vocabulary};
constexpr int64_t kCapacity = {capacity};  // A multiple of 16; an odd one avoids cache conflicts.

// Factors of a layer's adapter of rank 1: A (projections, 1, inputs) and B (1, outputs) in turn.
const std::vector<std::vector<int64_t>> kAdapter = {{
{adapter}
}};

// Keys and values of a layer, in 32-bit words.
const std::vector<CacheTensor> kCache = {{
{cache}
}};

// The tensors outside of the layers, then each layer's.
const std::vector<WeightFile> kWeights = {{
{weights}
}};
"""


def add_embedding(
    folder: Path,
    name: str,
    config: ModelConfig,
    lora: LoraOptions,
    device: str,
    backend: str,
    weights: list[dict[str, Any]],
    cache: list[dict[str, Any]],
) -> None:
    """Write the example program and the header of this bundle into a folder.

    Parameters
    ----------
    folder : pathlib.Path
        The folder to make.
    name : str
        The model's.
    config, lora
        What was compiled.
    device : str
        ``"cpu"``, ``"opencl"`` or ``"vulkan"``.
    backend : str
        File name of the device's library; "" where there is none.
    weights, cache : list of dict
        As the manifest lists them.
    """
    folder.mkdir()
    shutil.copyfile(EXAMPLE, folder / EXAMPLE.name)
    header = _HEADER.format(
        name=name,
        device=_DEVICES[device],
        backend=backend,
        vocabulary=config.vocab_size,
        capacity=CAPACITY,
        cache="\n".join(_cache_tensor(tensor) for tensor in cache),
        adapter="\n".join(f"    {_braces(shape)}," for shape in _rank_one(config, lora)),
        weights="\n".join(_weight_file(entry) for entry in weights),
    )
    (folder / "model.h").write_text(header, encoding="utf-8")


def _rank_one(config: ModelConfig, lora: LoraOptions) -> list[list[int]]:
    """Return the shapes of a layer's adapter factors, of rank 1."""
    shapes = []
    for factor in adapter_layout(config, lora).factors:
        shape = list(factor.shape)
        shape[1 if factor.factor == "a" else 0] = 1
        shapes.append(shape)
    return shapes


def _cache_tensor(tensor: dict[str, Any]) -> str:
    extents = {"S": 1, "M": CAPACITY}
    shape = _braces([extents.get(extent, extent) for extent in tensor["shape"]])
    return f'    {{"{tensor["dtype"]}", {shape}}},  // {tensor["name"]}'


def _weight_file(entry: dict[str, Any]) -> str:
    lines = [f'    {{"{entry["file"]}", {{']
    for spec in entry["tensors"]:
        size = int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
        shape = _braces(spec["shape"])
        lines.append(
            f'        {{"{spec["dtype"]}", {shape}, {spec["offset"]}, {size}}},  // {spec["name"]}'
        )
    return "\n".join([*lines, "    }},"])


def _braces(values: list[int]) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"
