"""What `fabric doctor --report` gathers: facts, kernels, numbers and speeds, in one file.

The file is for those who have not this hardware, so it names neither the person nor the computer:
of what drivers and systems say, only the fields that are listed here go in, and texts are rid of
names and paths.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..targets import APIS, DEVICE_VARIABLE, FabricError, Target, get_target
from ..targets.device_api import is_processor
from .devices import describe_cpu
from .output import Output
from .progress import PhaseBar
from .report_kernels import tried

if TYPE_CHECKING:
    from ..compiler import CompileOptions

SCHEMA = 1
SECONDS = 1200
"""How long a device may take for its part; some drivers compile for minutes."""
CONTEXT, RANK, SEED = 64, 8, 0
"""Of the model that is measured: nano, with random tokens and a random adapter."""
PACKAGES = ("bitfabric", "apache-tvm", "apache-tvm-ffi", "numpy")
DEVICE_FACTS = (
    "kind", "index", "name", "vendor", "driver", "type", "version", "vulkan", "cuda", "capability",
    "families", "arch", "global_memory", "max_buffer", "max_threads", "local_memory", "alignment",
    "subgroup_sizes", "unified_memory", "compute_units", "clock_mhz", "fp16", "integer_dot",
    "matrices", "push_constants", "features", "extensions", "local_memory_emulated",
)  # fmt: skip
"""Of what a driver says of a device; it may say more, such as a serial number."""
PROCESSOR_FACTS = ("name", "cores", "cores_total", "memory_mib", "features", "target")
ALLOWED = {"loss": 3e-3, "logits": 4e-2, "gradient": 1.5e-1}
"""The largest relative difference between two devices, by what is compared. Rounding sends a few
activations to the next of 255 levels, which a deep model amplifies: PoCL's loss is off by 6e-4 from
the same processor's own, its logits by 9e-3 and gradients by 4e-2. A kernel that is wrong makes
them differ by their size."""
_PATH = re.compile(r"""(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s'"(),;:]+[/\\])*[^\s'"(),;:]+""")


def gather(output: Output, checks: list[dict[str, Any]], devices: list[dict[str, Any]]) -> Any:
    """Return the report.

    Parameters
    ----------
    output : Output
        Who is told of the progress.
    checks, devices : list of dict
        What `fabric doctor` has found: the states of its checks, and the drivers' descriptions.
    """
    return scrubbed(
        {
            "schema": SCHEMA,
            "packages": {name: _version(name) for name in PACKAGES},
            "system": _system(),
            "processor": _chosen(describe_cpu(), PROCESSOR_FACTS),
            "checks": [_chosen(check, ("subject", "state")) for check in checks],
            "devices": [_facts(device) for device in devices],
            "measured": _measured(output, devices),
        }
    )


def scrubbed(value: Any) -> Any:
    """Return a value of JSON whose texts hold no path, and not the names of person and computer."""
    if isinstance(value, dict):
        return {key: scrubbed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(each) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    for name in _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text, flags=re.IGNORECASE)
    return text


def _names() -> list[str]:
    """Return what the person and the computer are called."""
    try:
        person = getpass.getuser()
    except (KeyError, OSError):
        person = ""
    return [name for name in (person, platform.node(), platform.node().split(".")[0]) if name]


def _system() -> dict[str, str]:
    """Return the system's name and version, and those of Python."""
    release = platform.mac_ver()[0] or platform.release()
    return {
        "name": platform.system(),
        "version": release,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chosen(facts: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: facts[name] for name in names if name in facts}


def _facts(device: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a device, and what is done with it."""
    verdict = APIS[device["kind"]].judge(device)
    told = {"used": verdict.used, "target": verdict.target, "reason": verdict.reason}
    return {**_chosen(device, DEVICE_FACTS), **told}


def _measured(output: Output, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return numbers and speeds of the processor and of each graphics processor.

    Processors that pose as devices are left out, unless ``FABRIC_DEVICE`` names one.
    """
    import numpy as np

    named = os.environ.get(DEVICE_VARIABLE, "")
    places = []
    for device in devices:
        place, api = f"{device['kind']}:{device['index']}", APIS[device["kind"]]
        suits = api.judge(device).target
        if suits is not None and (place == named or not is_processor(device)):
            places.append((place, get_target(suits, device)))
    with tempfile.TemporaryDirectory(prefix="fabric-report-") as name, PhaseBar(output) as bar:
        folder, found = Path(name), []
        expected = _Expected(folder)
        right: dict[str, np.ndarray] = {}
        for index, (place, target) in enumerate([("cpu", get_target("cpu")), *places]):
            bar(f"measure {place}", index / (1 + len(places)))
            numbers, result = _of_device(folder, place, target, expected)
            if not right:
                right = numbers
            elif numbers:
                result["numbers"] = _compared(numbers, right)
            found.append({"device": place, "target": target.name, **result})
        bar("done", 1.0)
    return found


class _Expected:
    """What the processor computes for each kernel of nano, as the kernels of a target's family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, target: Target) -> Path:
        """Return the folder for a target; it is filled once for all of its family."""
        from ..compiler.kernel_check import kernel_checks
        from ..models import open_model
        from .kernel_probe import write_expected

        folder = self._folder / f"expected-{target.family}"
        if not folder.exists():
            folder.mkdir()
            write_expected(folder, kernel_checks(open_model("nano").config, target, _options()))
        return folder


def _options() -> CompileOptions:
    """Return what the model is compiled with."""
    from ..compiler import CompileOptions, LoraOptions

    return CompileOptions(context=CONTEXT, lora=LoraOptions(rank=RANK))


def _of_device(
    folder: Path, place: str, target: Target, expected: _Expected
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compile nano for a device and run it there.

    Returns
    -------
    tuple
        Its numbers, and what the report has of it: ``kernels``, and ``speeds`` or an ``error``.
    """
    import numpy as np

    from ..compiler import compile_model
    from ..models import open_model

    bundle, out = folder / place.replace(":", "-"), folder / "numbers.npz"
    out.unlink(missing_ok=True)
    try:
        compile_model(open_model("nano"), target, _options(), bundle)
    except FabricError as error:
        return {}, {"error": error.cause}
    command = [sys.executable, "-m", f"{__package__}.report_probe", bundle, str(SEED), out]
    environment = {**os.environ, DEVICE_VARIABLE: place} if place != "cpu" else dict(os.environ)
    kernels = {"kernels": tried(bundle, expected.of(target), environment, SECONDS)}
    try:
        run = subprocess.run(
            [str(word) for word in command],
            env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}, {**kernels, "error": f"not done in {SECONDS} s"}
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [""])[-1]
        return {}, {**kernels, "error": f"ended with status {run.returncode}: {last}"}
    with np.load(out) as numbers:
        return dict(numbers), {**kernels, **json.loads(run.stdout.splitlines()[-1])}


def _compared(numbers: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how far each number or tensor is from the processor's, relative to its size."""
    import numpy as np

    found = []
    for name, expected in right.items():
        error = float(np.linalg.norm(numbers[name] - expected) / np.linalg.norm(expected))
        allowed = next(most for word, most in ALLOWED.items() if word in name)
        passed = error <= allowed
        found.append({"of": name, "error": f"{error:.2e}", "passed": passed})
    return found
