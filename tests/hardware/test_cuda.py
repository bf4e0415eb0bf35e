"""What is CUDA's own on a real device: its description, its graphs, and the memory it reports.

Needs the runtime alone, and of the bundles that `make_bundles.py` wrote those for CUDA: see
`test_device_parity`, which compares their numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Bundle, InferenceEngine, open_bundle
from bitfabric.runtime.backends import devices
from bitfabric.runtime.cuda.graphs import Graph
from bitfabric.targets import APIS, FabricError

FOLDER = os.environ.get("FABRIC_HARDWARE_BUNDLES", "")
NAMES = sorted(path.stem for path in Path(FOLDER).glob("*-on-cuda*.fabric"))
MIB = 1 << 20


def _missing() -> str:
    try:
        devices("cuda")
    except FabricError as error:
        return str(error)
    return "" if FOLDER and NAMES else "FABRIC_HARDWARE_BUNDLES names no folder of CUDA bundles"


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Return a bundle for CUDA."""
    return open_bundle(Path(FOLDER) / f"{request.param}.fabric")


def test_the_device_is_used_by_a_target_of_its_architecture() -> None:
    device = devices("cuda")[0]
    verdict = APIS["cuda"].judge(device)
    major, minor = device["capability"]
    assert verdict.used
    assert verdict.target in (f"cuda-sm{major}{minor}", "cuda")
    assert device["subgroup_sizes"] == [32, 32]
    assert device["local_memory"] >= 48 << 10


def test_tokens_after_the_second_are_one_graph_and_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, launch = [], Graph.launch

    def counted(graph: Graph) -> None:
        launched.append(graph)
        launch(graph)

    monkeypatch.setattr(Graph, "launch", counted)
    tokens = np.random.default_rng(5).integers(0, bundle.config["vocab_size"], 12)
    runs = []
    for _ in range(2):
        engine = InferenceEngine(bundle, capacity=64)
        engine.prefill(tokens[:4])
        runs.append(np.stack([engine.decode(int(token)).copy() for token in tokens]))
    # The first token compiles, the second is recorded and launched, the others are launched.
    assert len(launched) == 2 * (len(tokens) - 1)
    np.testing.assert_array_equal(*runs)
    assert np.isfinite(runs[0]).all()


def test_the_memory_is_the_devices(bundle: Bundle) -> None:
    engine = InferenceEngine(bundle, capacity=64)
    engine.prefill(np.arange(4))
    device = devices("cuda")[0]
    assert 0 < engine.device_memory_mib < device["global_memory"] / MIB
