"""The wheel of this system with its native backends: what it asks for, and that it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.runtime.native import build

from .test_packaging import PROJECT, ROOMS, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="checked with Linux' own tools"),
]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy so that the checkout gets no build folder."""
    try:
        build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in [*ROOMS.values(), "pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", f"*{build.SUFFIX}")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True
    )
    return next(out.glob("*.whl"))


def test_it_fits_any_recent_linux_without_tvms_libraries(wheel: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    pytest.importorskip("auditwheel")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "manylinux_2_" in " ".join(shown.split())
    settings = PROJECT["tool"]["cibuildwheel"]["linux"]
    for name in build.LIBRARIES:
        assert f"--exclude lib{name}.so" in settings["repair-wheel-command"]


def test_installed_elsewhere_it_compiles_and_runs(wheel: Path, tmp_path: Path) -> None:
    site, bundle = tmp_path / "site", tmp_path / "nano.fabric"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)
    libraries = {file.name for file in (site / "bitfabric/runtime/native").glob(f"*{build.SUFFIX}")}
    assert libraries == {build.library_name(kind) for kind in build.BUILT}
    environment = {
        **os.environ, "PYTHONPATH": str(site), "BITFABRIC_CACHE": str(tmp_path / "cache")
    }  # fmt: skip

    def fabric(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "bitfabric.cli", *arguments, "--json"],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    where = subprocess.run(
        [sys.executable, "-c", "import bitfabric.cli as c; print(c.__file__)"],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    fabric("compile", "nano", "-o", str(bundle))
    said = fabric("run", str(bundle), "--prompt", "Hello", "--max-new-tokens", "4")
    assert said["tokens"] == 4
    status = "from bitfabric.runtime.backends import backend_status as s; print(s('{}')['origin'])"
    for kind in build.KINDS:
        told = subprocess.run(
            [sys.executable, "-c", status.format(kind)],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert told.stdout.strip() == "installed"
