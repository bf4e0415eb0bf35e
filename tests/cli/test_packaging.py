"""The package: every folder is in the wheel, and what is installed works from anywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = PROJECT["tool"]["setuptools"]["package-dir"]


def folders_with_init() -> set[str]:
    """Every package of the rooms, under its import name."""
    return {
        "bitfabric." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in ROOMS.values()
        for init in (ROOT / folder).rglob("__init__.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that the checkout gets no build folder."""
    source = tmp_path_factory.mktemp("source")
    for name in [*ROOMS.values(), "pyproject.toml", "README.md", "LICENSE"]:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True
    )
    return next(out.glob("*.whl"))


def test_pyproject_lists_every_folder_that_is_a_package() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders_with_init()


def test_the_wheel_holds_every_source_file_and_the_shipped_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ROOMS.values():
        for source in (ROOT / room).rglob("*.py"):
            assert f"bitfabric/{source.relative_to(ROOT)}" in names
    for data in ("models/nano", "examples/biomedqa"):
        files = [file for file in (ROOT / data).iterdir() if file.is_file()]
        assert files, data
        for file in files:
            assert f"bitfabric/{file.relative_to(ROOT)}" in names


def test_the_wheel_takes_no_top_level_name_but_its_own(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bitfabric"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_fresh_environment_runs_the_command(kind: str, wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    what = [str(wheel)] if kind == "wheel" else ["--editable", str(ROOT)]
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *what], check=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # ONNX is an extra; without it that folder says so.
    plain = sorted(folders_with_init() - {"bitfabric.models.onnx_format"})
    imports = "; ".join(f"import {name}" for name in plain)
    subprocess.run([programs / "python", "-c", imports], cwd=elsewhere, check=True)
    subprocess.run(
        [programs / "fabric", "compile", "nano", "-o", "nano.fabric"], cwd=elsewhere, check=True
    )
    shown = subprocess.run(
        [programs / "fabric", "run", "nano.fabric", "--prompt", "Q:", "--max-new-tokens", "4"],
        cwd=elsewhere,
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip()
