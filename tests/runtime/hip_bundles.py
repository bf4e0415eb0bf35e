"""Bundles of a tiny model for the tests of training through HIP, and how they are run.

ROCm's runs on a library in the place of ROCm's, OpenCL's has the same kernels, and the plan is the
processor's own run of them; `hip_tools.py` and `launch_plan.py` say how.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.targets import Target, get_target

from ..parity.conftest import BASE
from .hip_tools import build_standin
from .launch_plan import compile_plan
from .test_device_trouble import DATA

LAYERS = 3
"""One more than a streamed run holds."""
STREAMED = "-streamed"
"""What stands behind the kind of a bundle whose layers are read as they are needed."""
PLAN = "plan"
"""The kind of the processor's bundle with a device's kernels."""
PLAIN = frozenset({"shared_memory", "int8_dot"})
"""What PoCL's kernels may use, so ROCm's here."""
STEPS = 4


def layouts() -> dict[str, Target]:
    """Return targets that lay all kernels out alike, for each way to run them."""
    rocm = replace(get_target("rocm-gfx90a"), features=PLAIN, matrices=())
    rocm = replace(rocm, limits=replace(rocm.limits, subgroup=0, max_buffer=128 << 20))
    opencl = get_target("opencl")
    options = opencl.options | {
        name: rocm.options[name]
        for name in ("max_threads_per_block", "max_num_threads", "max_shared_memory_per_block")
    }
    same = replace(opencl, options=options, features=PLAIN, limits=rocm.limits)
    return {"rocm": rocm, "opencl": same, "cpu": get_target("cpu")}


def compile_bundles(place: Path) -> None:
    """Fill a folder: the library, the data and the model for each way to run it."""
    build_standin(place)
    (place / "data.jsonl").write_text(DATA, encoding="utf-8")
    nano = open_model("nano")
    config = replace(BASE, num_layers=LAYERS, vocab_size=nano.config.vocab_size)
    model = RandomCheckpoint(config, 3, "random:tiny")
    model.tokenizer_files = nano.tokenizer_files
    options, targets = CompileOptions(context=16, lora=LoraOptions(rank=2)), layouts()
    with pytest.MonkeyPatch.context() as patch:
        # What differs in streaming alone is compiled once.
        patch.setenv("BITFABRIC_CACHE", str(place / "cache"))
        for kind, target in targets.items():
            compile_model(model, target, options, place / f"{kind}.fabric")
        streamed = replace(options, resident_layers=0)
        compile_model(model, targets["rocm"], streamed, place / f"rocm{STREAMED}.fabric")
    for of, more in ((options, ""), (streamed, STREAMED)):
        compile_plan(model, targets["rocm"], of, place / f"{PLAN}{more}.fabric")


def run(
    folder: Path, kind: str, name: str, *more: str, plan: str = "", **environment: str
) -> tuple[int, str]:
    """Run a bundle, to train the adapter of a name if there is one; return status and output.

    Parameters
    ----------
    folder : Path
        As :func:`compile_bundles` filled it.
    kind, name
        Of the bundle, and of the adapter or "".
    *more : str
        Further arguments of ``fabric run``.
    plan : str
        The subfolder for what the bundle of the plan launches, and for what ROCm's does.
    **environment : str
        Further variables.
    """
    arguments = ["run", str(folder / f"{kind}.fabric"), *more]
    if name:
        arguments += ["--train", str(folder / "data.jsonl"), "--adapter", str(folder / name)]
        arguments += ["--max-steps", str(STEPS), "--save-every", "1", "--seed", "5"]
    call, at = "main(ARGUMENTS)", f"FOLDER / {plan!r}" if plan else "None"
    if kind.startswith("rocm"):
        call = (
            f"run_on_standin(FOLDER / '{kind}.fabric', FOLDER / 'opencl.fabric', ARGUMENTS, {at})"
        )
    elif kind.startswith(PLAN):
        device = f"FOLDER / '{kind.replace(PLAN, 'rocm')}.fabric'"
        call = f"run_as_planned(FOLDER / 'opencl.fabric', ARGUMENTS, {at}, {device})"
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\nfrom bitfabric.cli import main\n"
        "from tests.runtime.hip_tools import run_as_planned, run_on_standin\n"
        f"ARGUMENTS, FOLDER = {arguments!r}, Path({str(folder)!r})\n{call}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FABRIC_HIP_LIB": str(folder / "libamdhip64.so"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout
