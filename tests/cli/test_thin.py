"""`fabric run` is thin: TVM's runtime library alone, and none of the large packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import environment

HEAVY = ("torch", "tvm.relax", "transformers", "matplotlib", "pandas", "bitfabric.compiler",
         "bitfabric.models", "bitfabric.schedules")  # fmt: skip

PROGRAM = """
import sys
from bitfabric.cli import main
status = 0
try:
    main(sys.argv[1:], prog_name="fabric")
except SystemExit as end:
    status = end.code
maps = open("/proc/self/maps").read()
loaded = {line.split("/")[-1] for line in maps.splitlines() if "libtvm" in line}
print(status, "|", *sorted(loaded), "|", *[name for name in HEAVY if name in sys.modules])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt", "Q:", "--max-new-tokens", "2"),
        ("--eval", "validation.jsonl"),
        ("--train", "train.jsonl", "--adapter", "{out}", "--max-steps", "1"),
    ],
    ids=["prompt", "eval", "train"],
)
def test_run_never_loads_the_compiler(
    arguments: tuple[str, ...], bundle: Path, data: Path, tmp_path: Path
) -> None:
    filled = [word.format(out=tmp_path / "out") for word in arguments]
    program = f"HEAVY = {HEAVY!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(bundle), *filled],
        cwd=data, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, libraries, heavy = done.stdout.splitlines()[-1].split("|")
    assert status.strip() == "0", done.stderr
    assert "libtvm_runtime.so" in libraries
    assert "libtvm_compiler.so" not in libraries
    assert "libtvm_runtime_extra.so" not in libraries
    assert heavy.split() == []


def test_what_compiles_does_not_load_torch() -> None:
    program = "import sys, bitfabric.compiler; print('tvm' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", "False"]
