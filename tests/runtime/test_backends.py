"""Finding, building and loading the native backends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.runtime import backends
from bitfabric.runtime.backends import backend_status, load_backend
from bitfabric.runtime.native import build
from bitfabric.targets import FabricError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an empty cache, and no library beside the sources."""
    current = build.is_current
    monkeypatch.setattr(
        build, "is_current", lambda path, kind: path.parent != build.FOLDER and current(path, kind)
    )
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path))
    return tmp_path


def test_a_kind_that_there_is_no_backend_for() -> None:
    with pytest.raises(FabricError, match="no native backend for abacus") as caught:
        load_backend("abacus")
    assert "opencl" in caught.value.remedy
    assert "abacus" in backend_status("abacus")["problem"]


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
@pytest.mark.slow
def test_a_backend_is_built_on_first_need_and_found_again(not_installed: Path) -> None:
    before = backend_status("opencl")
    assert before["library"] is None
    assert before["compiler"]
    assert before["problem"] is None
    load_backend("opencl")
    status = backend_status("opencl")
    assert status["loaded"]
    assert status["origin"] == "cache"
    assert Path(status["library"]).is_relative_to(not_installed)
    backends._loaded.clear()
    assert backend_status("opencl")["library"] == status["library"]
    # A library of other sources is as good as none.
    library = Path(status["library"])
    altered = library.read_bytes().replace(b"build key: ", b"build key! ")
    # This process runs the old file: it must stay whole until the process ends.
    library.unlink()
    library.write_bytes(altered)
    assert backend_status("opencl")["library"] is None


def test_what_is_missing_is_said(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(not_installed))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FabricError, match=r"No C\+\+ compiler was found") as caught:
        load_backend("opencl")
    assert "apt install g++" in caught.value.remedy
    status = backend_status("opencl")
    assert status["problem"] == caught.value.cause
    assert status["remedy"] == caught.value.remedy


def test_a_compiler_that_fails(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = not_installed / "broken"
    compiler.write_text("#!/bin/sh\necho 'x.cc:1: error: no such language' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(FabricError, match="error: no such language"):
        load_backend("opencl")
    assert not list((not_installed / "native").rglob("*.so"))


def test_loading_needs_neither_the_compiler_library_nor_torch() -> None:
    script = (
        "import sys; from bitfabric.runtime.backends import load_backend; load_backend('opencl');"
        "print(sorted({'tvm', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_every_source_goes_along_with_the_package() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = tools["package-data"]["bitfabric.runtime.native"]
    packed = {file for pattern in patterns for file in build.FOLDER.glob(pattern)}
    for kind in build.KINDS:
        assert set(build.sources(kind)) <= packed
