"""Weight files are read whole, by several threads where they are long, or what lacks is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bitfabric.runtime import weight_reading
from bitfabric.targets import FabricError


@pytest.mark.parametrize("strip", [1000, 1 << 20])
def test_parts_are_read_whole_and_a_short_file_is_told(
    strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_reading, "STRIP", strip)
    content = np.random.default_rng(0).integers(0, 256, 12_345, np.uint8)
    path = tmp_path / "layer.bin"
    path.write_bytes(content.tobytes())
    bundle = SimpleNamespace(weight_file=lambda index: (path, content))
    parts = [(7, np.zeros(5_000, np.uint8)), (6_001, np.zeros(6_344, np.uint8))]
    weight_reading.read_parts(bundle, 0, parts)
    for offset, into in parts:
        np.testing.assert_array_equal(into, content[offset : offset + len(into)])
    path.write_bytes(content[:11_000].tobytes())
    with pytest.raises(FabricError, match=r"layer.bin has 11,000 bytes where it had 12,345"):
        weight_reading.read_parts(bundle, 0, parts)
