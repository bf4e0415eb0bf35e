"""A Vulkan device is made with the features that the loaded modules need, and no other."""

from __future__ import annotations

import pytest

from .test_vulkan_errors import faulty as faulty
from .test_vulkan_errors import pytestmark as pytestmark  # needs a Vulkan driver
from .vulkan_tools import in_process

TOOLS = """
from dataclasses import replace
data = np.arange(8, dtype="float32")
def enabled():
    return json.loads(call("bitfabric.vulkan.enabled", 0))
def module(*features, interface="descriptors"):
    kernel = scale_kernel(interface)
    return load(module_bytes([replace(kernel, features=(*kernel.features, *features))]))
def launch(of):
    x, y = upload(data), empty((8,))
    scale(of["scale"], y, x, 2.0, 1, 8)
    return float(download(y).sum())
def attempt(of):
    try:
        return launch(of)
    except RuntimeError as error:
        return str(error)
"""
RIGHT, OWN = 64.0, "timelineSemaphore"


def outcome(script: str, **variables: str) -> list:
    """Return what a script prints, in a process of its own."""
    return in_process(TOOLS + script, **variables)


def test_only_what_the_loaded_modules_need_is_enabled() -> None:
    before, sums, made = outcome("""
modules = [module("shaderFloat16"), module("shaderInt8", interface="addresses")]
before = enabled()
print(json.dumps([before, [launch(each) for each in modules], enabled()]))
""")
    assert before == {"features": [], "made": 0}
    assert sums == [RIGHT] * 2
    needed = {"shaderFloat16", "shaderInt8", "shaderInt64", "bufferDeviceAddress", OWN}
    assert set(made["features"]) == needed
    assert made["made"] == 1


def test_the_driver_is_asked_for_these_alone(faulty: str, tmp_path) -> None:
    """As the driver's own interface sees it, not as the backend says."""
    log = tmp_path / "features"
    outcome(
        "print(json.dumps([launch(module('shaderFloat16'))]))",
        FABRIC_VULKAN_LIB=faulty,
        FAULT_FEATURES=str(log),
    )
    # VkPhysicalDeviceFeatures2: shaderInt64; shaderFloat16Int8; timelineSemaphore.
    assert set(log.read_text().split()) == {"1000059000:40", "1000082000:0", "1000207000:0"}


def test_a_device_on_which_nothing_lives_is_made_anew() -> None:
    """Kernels that were compiled before are compiled again, recordings and tensors are gone."""
    sums, first, second = outcome("""
few = module()
sums, first = [launch(few)], enabled()
many = module("shaderFloat16", interface="addresses")
sums += [launch(many), launch(few), launch(many)]
del many
sums.append(launch(few))
print(json.dumps([sums, first, enabled()]))
""")
    assert sums == [RIGHT] * 5
    assert set(first["features"]) == {"shaderInt64", OWN}
    assert set(second["features"]) == {"shaderInt64", "shaderFloat16", "bufferDeviceAddress", OWN}
    assert (first["made"], second["made"]) == (1, 2)


@pytest.mark.parametrize(
    "living",
    [
        "kept = upload(data)",
        "kept = view(upload(data), 0, (4,))",
        "recorder",
    ],
    ids=["tensor", "view", "recording"],
)
def test_a_module_that_needs_more_is_refused_while_something_lives(living: str) -> None:
    if "recorder" in living:
        living = """
x, y = upload(data), empty((8,))
kept = call("bitfabric.vulkan.recorder", 0)(
    lambda: scale(few["scale"], y, x, 2.0, 1, 8), lambda result: None)
assert kept is not None
del x, y"""
    message, still, after, made = outcome(f"""
few = module()
launch(few)
{living}
many = module("shaderFloat16")
message, still = attempt(many), attempt(few)
del kept
print(json.dumps([message, still, attempt(many), enabled()]))
""")
    assert message.startswith("Vulkan error: Kernel scale can't run on device 0")
    assert "needs shaderFloat16. Load all modules first, or free" in message
    assert still == after == RIGHT
    assert made["made"] == 2


def test_whoever_expects_any_module_gets_all_that_the_device_has() -> None:
    made, total = outcome("""
call("bitfabric.vulkan.expect_any")
kept = upload(data)
total = launch(module("shaderFloat16"))
made = set(enabled()["features"]) ^ set(devices()[0]["features"])
print(json.dumps([sorted(made), total]))
""")
    assert all(name.startswith(("subgroup", "float16Denormals")) for name in made)
    assert "subgroupSizeControl" not in made
    assert total == RIGHT


@pytest.mark.slow
def test_devices_are_made_anew_while_other_threads_work() -> None:
    """Each thread loads modules of its own needs, uses them and lets them go."""
    results, made = outcome("""
import threading
needs = [("shaderFloat16",), ("shaderInt8",), ("shaderInt16",), ()]
results = []
def work(own):
    for turn in range(40):
        each = module(*own, interface=("addresses", "descriptors")[turn % 2])
        results.append(attempt(each))
        del each
threads = [threading.Thread(target=work, args=(own,)) for own in needs]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([results, enabled()["made"]]))
""")
    assert len(results) == 160
    for result in results:
        anew = "was made anew meanwhile" in str(result)
        assert result == RIGHT or anew or "Load all modules first" in result, result
    assert RIGHT in results
    assert made >= 1
