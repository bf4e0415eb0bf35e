"""The Vulkan backend under Khronos's validation layer, which knows every rule of the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_vulkan_errors import DISCRETE
from .test_vulkan_errors import faulty as faulty
from .vulkan_tools import run_process, why_not

LAYER = "VK_LAYER_KHRONOS_validation"
FOLDERS = ("/usr/share/vulkan", "/usr/local/share/vulkan", "/etc/vulkan")
REASON = why_not()
if REASON is None and not any(
    (Path(folder) / "explicit_layer.d" / "VkLayer_khronos_validation.json").is_file()
    for folder in FOLDERS
):
    REASON = f"{LAYER} is not installed (apt install vulkan-validationlayers)"
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no validation: {REASON}")
VALIDATION = {
    "VK_INSTANCE_LAYERS": LAYER,
    # Also of what copies and kernels do to the same memory.
    "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
}
# Launches, copies, writes in and out of place, clearing, views, recordings, their profile, folded
# grids, memory that goes back under way, modules that end, and a device that is made anew.
WORK = """
def work(interface):
    kernel = scale_module(interface)["scale"]
    x, y = upload(np.arange(5000, dtype="float32")), empty((5000,))
    for turn in range(300):
        between = empty((5000,))
        scale(kernel, between, x, 2.0, turn, 5000)
        scale(kernel, y, between, 0.5, 1, 5000)
        upload(np.full(100, turn, "float32"), view(x, 1024, (100,)))
        if turn % 50 == 0:
            del between
            call("bitfabric.vulkan.release", 0)
            call("bitfabric.vulkan.clear", view(y, 256, (7,), "uint8"))
            download(y)
    call("runtime.TVMTensorCopyFromTo", x, y)
    if devices()[0]["max_groups"][0] < 100_000:
        kernel(y, x, 1.0, 0, 5000, 70_000, 1)
    results = []
    def step():
        between, last = empty((5000,)), empty((5000,))
        for turn in range(150):
            scale(kernel, between, y, 2.0, turn, 5000)
            scale(kernel, last, between, 0.5, 1, 5000)
        return last
    replay = call("bitfabric.vulkan.recorder", 0)(step, results.append)
    for turn in range(5):
        upload(np.full(5000, turn, "float32"), y)
        replay(False)
        scale(kernel, y, results[0], 1.0, 0, 5000)
    replay(True)
    download(y)
# The device of the first is made anew for what the second needs.
for interface in ("descriptors", "addresses", "spilled"):
    work(interface)
assert json.loads(call("bitfabric.vulkan.enabled", 0))["made"] == 2
"""
BROKEN = """
from dataclasses import replace
kernel = replace(scale_kernel(), block=32, foldable=False)  # shorter than what the code declares
module = load(module_bytes([kernel]))
y = upload(np.zeros(8, "float32"))
scale(module["scale"], y, y, 1.0, 0, 8)
sync()
"""


def messages(script: str, **variables: str) -> list[str]:
    """Run a script under the layer; return what the layer says."""
    run = run_process(script, **VALIDATION, **variables)
    said = (run.stdout + run.stderr).splitlines()
    return [line for line in said if "VUID" in line or "SYNC-" in line or "Validation" in line]


def test_the_layer_is_there_and_speaks() -> None:
    assert any("VUID" in line for line in messages(BROKEN))


def test_nothing_breaks_a_rule() -> None:
    assert messages(WORK) == []


@pytest.mark.parametrize("interface", ["addresses", "descriptors"])
def test_nothing_breaks_a_rule_on_a_device_with_memory_of_its_own(
    faulty: str, interface: str
) -> None:
    script = WORK + DISCRETE.replace("INTERFACE", repr(interface))
    assert messages(script, FABRIC_VULKAN_LIB=faulty, FAULT_DISCRETE="1") == []
