"""What CUDA's runtime side does without a device: views, and the sentences for what is missing."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from bitfabric.runtime.cuda import libraries, views
from bitfabric.targets import FabricError
from bitfabric.targets.ffi import tvm_ffi

FLOAT = tvm_ffi.dtype("float32")


@pytest.fixture
def numbers() -> tvm_ffi.Tensor:
    """Return 24 numbers in a row, in the processor's memory: views are the same everywhere."""
    return tvm_ffi.from_dlpack(np.arange(24, dtype="float32"))


def test_a_view_begins_at_its_own_first_byte(numbers: tvm_ffi.Tensor) -> None:
    part = views.view(numbers, 16, (2, 3), FLOAT)
    # Generated code refuses a tensor with an offset beside its address.
    assert part.data_ptr() == numbers.data_ptr() + 16
    np.testing.assert_array_equal(np.from_dlpack(part), [[4, 5, 6], [7, 8, 9]])


def test_a_view_of_a_view_keeps_the_memory_and_gives_it_back(numbers: tvm_ffi.Tensor) -> None:
    before = len(views._held)
    inner = views.view(views.view(numbers, 16, (8,), FLOAT), 4, (2,), FLOAT)
    gc.collect()
    assert len(views._held) == before + 2
    np.testing.assert_array_equal(np.from_dlpack(inner), [5, 6])
    del inner
    gc.collect()
    assert len(views._held) == before


@pytest.mark.parametrize(("offset", "count"), [(80, 8), (96, 1), (-4, 1)])
def test_a_view_beyond_the_tensor_is_refused(
    numbers: tvm_ffi.Tensor, offset: int, count: int
) -> None:
    with pytest.raises(ValueError, match="not within a tensor of 96 bytes"):
        views.view(numbers, offset, (count,), FLOAT)


@pytest.mark.parametrize(
    ("name", "load", "remedy"),
    [
        ("DRIVER", libraries.driver, "Install NVIDIA's driver"),
        ("RUNTIME", libraries.cudart, "pip install 'nvidia-cuda-runtime"),
        ("TVM", libraries.library, "--target vulkan:auto"),
    ],
)
def test_a_missing_library_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, load: object, remedy: str
) -> None:
    monkeypatch.setattr(libraries, name, "libnowhere.so.0")
    with pytest.raises(FabricError, match=r"there is no libnowhere.so.0\.") as caught:
        load()  # type: ignore[operator]
    assert remedy in caught.value.remedy
