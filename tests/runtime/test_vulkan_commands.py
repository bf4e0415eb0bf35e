"""Which commands the driver is given: no barrier and no copy that nothing asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_vulkan_errors import faulty as faulty
from .test_vulkan_errors import pytestmark as pytestmark  # needs a Vulkan driver
from .vulkan_tools import in_process

START = """
kernel = scale_module(INTERFACE)["scale"]
x = upload(np.arange(8, dtype="float32"))
many = [upload(np.zeros(8, "float32")) for _ in range(9)]
sync()
open(os.environ["FAULT_COMMANDS"], "w").close()
"""
SIDE_BY_SIDE = """
for y in many:
    scale(kernel, y, x, 2.0, 1, 8)
"""
CHAIN = """
for y, before in zip(many, [x, *many]):
    scale(kernel, y, before, 1.0, 1, 8)
"""
PAIRS = """
for y, before in zip(many[::2], many[1::2]):
    scale(kernel, y, x, 1.0, 1, 8)
    scale(kernel, before, y, 1.0, 1, 8)
"""
OVERWRITTEN = """
for turn in range(4):
    scale(kernel, many[0], x, 1.0, turn, 8)
"""
TRANSFERS = """
size = 1 << 20
data = np.arange(size, dtype="float32")
open(os.environ["FAULT_COMMANDS"], "w").close()
y = upload(data)
assert np.array_equal(download(y), data)
"""


def commands(script: str, faulty: str, folder: Path, **variables: str) -> list[str]:
    """Return the commands that a script has the driver record."""
    log = folder / "commands"
    variables |= {"FABRIC_VULKAN_LIB": faulty, "FAULT_COMMANDS": str(log)}
    in_process(script + "sync()\nprint(json.dumps(None))", **variables)
    return log.read_text().split()


@pytest.mark.parametrize(
    "interface", ["addresses", pytest.param("descriptors", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("script", "launches", "barriers"),
    [(SIDE_BY_SIDE, 9, 0), (CHAIN, 9, 8), (PAIRS, 8, 7), (OVERWRITTEN, 4, 3)],
    ids=["side by side", "chain", "pairs", "overwritten"],
)
def test_barriers_stand_only_where_buffers_depend(
    faulty: str, tmp_path: Path, script: str, launches: int, barriers: int, interface: str
) -> None:
    begin = START.replace("INTERFACE", repr(interface))
    found = commands(begin + script, faulty, tmp_path)
    assert found.count("dispatch") == launches
    assert found.count("copy") == 0
    # The order of a pair and the next needs none: a barrier that some need serves all.
    assert found.count("barrier") <= barriers
    assert found.count("barrier") >= (barriers if script is not PAIRS else 4)


def test_memory_that_the_host_shares_is_written_and_read_in_place(
    faulty: str, tmp_path: Path
) -> None:
    begin = START.replace("INTERFACE", "'addresses'")
    assert commands(begin + TRANSFERS, faulty, tmp_path) == []
    own = commands(begin + TRANSFERS, faulty, tmp_path, FAULT_DISCRETE="1")
    assert own.count("copy") >= 2
