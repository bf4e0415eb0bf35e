"""What a bundle brings along: notes, a runtime that needs Python and numpy, a C++ program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import backend, compile_model, runtime_files
from bitfabric.compiler.platforms import find_platform, for_host
from bitfabric.models import RandomCheckpoint
from bitfabric.runtime import InferenceEngine, open_bundle
from bitfabric.targets import FabricError, get_target

from ..parity.conftest import BASE
from .test_cross_link import ANDROID, LINUX, OPTIONS

MODEL = RandomCheckpoint(BASE, seed=3, name="random:tiny")
MOST_MIB = 15
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
bundle = sys.argv[2]
sys.path.insert(0, bundle + "/runtime")
import numpy as np
from bitfabric.runtime import Batch, InferenceEngine, TrainingEngine, open_bundle
opened = open_bundle(bundle)
engine = TrainingEngine(opened)
engine.initialize_adapter(0)
tokens = np.arange(12, dtype=np.int32).reshape(1, 12)
batch = Batch(tokens=tokens, labels=tokens + 1, starts=np.zeros_like(tokens))
losses = []
for step in (1, 2):
    losses.append(engine.accumulate(batch, 1 / 12, seed=0))
    engine.update(learning_rate=1e-2, step=step)
writer = InferenceEngine(opened, [(engine.adapter_tensors(), 1.0)], capacity=32)
logits = writer.prefill([1, 2, 3])
print(losses[1] < losses[0], np.isfinite(logits).all(), writer.decode(4).shape)
homes = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
print(sorted({path.split("/site-packages/")[-1].split("/")[0] for path in homes
              if "site-packages" in path}))
"""


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for this machine that brings its runtime along."""
    folder = tmp_path_factory.mktemp("portable") / "tiny.fabric"
    return compile_model(MODEL, get_target("cpu"), OPTIONS, folder, with_runtime=True)


def test_a_bundle_for_this_machine_has_nothing_more_than_it_needs(tmp_path: Path) -> None:
    bundle = compile_model(MODEL, get_target("cpu"), OPTIONS, tmp_path / "tiny.fabric")
    names = sorted(path.name for path in bundle.iterdir())
    assert names == ["manifest.json", "module.so", "tuning.json", "weights"]


def test_every_file_of_the_runtime_is_in_the_manifest_and_it_is_small(portable: Path) -> None:
    files = json.loads((portable / "manifest.json").read_text())["files"]
    runtime = [path for path in (portable / "runtime").rglob("*") if path.is_file()]
    assert runtime
    assert {path.relative_to(portable).as_posix() for path in runtime} <= files.keys()
    assert sum(path.stat().st_size for path in runtime) < MOST_MIB * 2**20
    assert "libtvm_compiler" not in " ".join(files)
    (portable / "runtime" / "bitfabric" / "runtime" / "__init__.py").rename(portable / "moved")
    with pytest.raises(FabricError, match="is missing"):
        open_bundle(portable)
    (portable / "moved").rename(portable / "runtime" / "bitfabric" / "runtime" / "__init__.py")


@pytest.mark.skipif(sys.platform == "win32", reason="links folders")
def test_it_trains_and_writes_with_python_and_numpy_alone(portable: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    for name in ("numpy", "numpy.libs"):
        if (home := Path(np.__file__).parent.parent / name).is_dir():
            (site / name).symlink_to(home)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(site), str(portable)],
        env={}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True True ({BASE.vocab_size},)", "['numpy']"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are a shell's")
def test_the_commands_of_its_notes_build_a_program_that_writes_the_same(portable: Path) -> None:
    notes = (portable / "DEPLOY.md").read_text()
    section = notes[notes.index("## Put it into a program") :]
    commands = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)], cwd=portable, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert commands[-1].endswith("./generate . 1 2 3")
    engine = InferenceEngine(open_bundle(portable), capacity=64)
    logits, expected = engine.prefill([1, 2, 3]), []
    for _ in range(16):
        expected.append(int(logits.argmax()))
        logits = engine.decode(expected[-1])
    assert [int(word) for word in done.stdout.split()] == expected


@pytest.mark.parametrize(
    ("target", "kind", "driver"),
    [("adreno", "opencl", "libOpenCL.so"), ("adreno-vulkan", "vulkan", "FABRIC_VULKAN_LIB")],
)
@pytest.mark.slow
def test_a_bundle_for_android_brings_notes_sources_and_our_runtime(
    target: str, kind: str, driver: str, tmp_path: Path
) -> None:
    for variable in backend.NDK_VARIABLES:
        assert variable not in os.environ, "an NDK would be used"
    bundle = compile_model(MODEL, get_target(target), OPTIONS, tmp_path / "tiny.fabric")
    notes = (bundle / "DEPLOY.md").read_text()
    library = f"libbitfabric_{kind}.so"
    for word in ("Termux", "jniLibs", "embed/generate.cc", library, driver, "NDK"):
        assert word in notes, word
    version = importlib.metadata.version("apache-tvm-ffi")
    assert f"apache-tvm-ffi=={version}" in notes
    native = bundle / "runtime" / backend.NATIVE
    sources = {path.name for path in backend.build.sources(kind)}
    assert sources <= {path.name for path in native.rglob("*")}
    assert (bundle / "run.py").is_file()
    assert (bundle / "weights" / "ends.bin").is_file()
    # Closed: what is written into a bundle is written before it is sealed.
    assert open_bundle(bundle, foreign=True).manifest["target"]["host"] == ANDROID


@pytest.mark.slow
def test_with_an_ndk_the_backend_is_built_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang")
    programs = tmp_path / "ndk" / "toolchains" / "llvm" / "prebuilt" / "here" / "bin"
    programs.mkdir(parents=True)
    compiler = programs / f"aarch64-linux-android{backend.ANDROID_API}-clang++"
    log = tmp_path / "arguments"
    # In the place of the NDK's: it keeps what it was told and makes the file.
    compiler.write_text(
        f'#!/bin/sh\necho "$@" > {shlex.quote(str(log))}\n'
        'while [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("ANDROID_NDK_ROOT", str(tmp_path / "ndk"))
    bundle = compile_model(MODEL, get_target("adreno"), OPTIONS, tmp_path / "tiny.fabric")
    library = bundle / "runtime" / backend.NATIVE / "libbitfabric_opencl.so"
    assert library.read_text() == "library\n"
    arguments = log.read_text()
    assert "max-page-size=16384" in arguments
    assert backend.build.build_key("opencl") in arguments
    assert "libtvm_runtime.so" in arguments
    assert (
        f"`runtime/{backend.NATIVE.as_posix()}/{library.name}`"
        in (bundle / "DEPLOY.md").read_text()
    )


READELF = shutil.which("readelf")
CROSS = backend.cross_compiler(find_platform(LINUX))


@pytest.mark.skipif(READELF is None or CROSS is None, reason="needs g++-aarch64-linux-gnu")
@pytest.mark.slow
def test_the_backend_for_another_linux_needs_tvm_and_the_system_alone(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    (runtime / backend.NATIVE).mkdir(parents=True)
    assert backend.add_backend("opencl", find_platform(LINUX), runtime)
    library = runtime / backend.NATIVE / "libbitfabric_opencl.so"
    command = [READELF, "--wide", "--dynamic", "--program-headers", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}
    assert {"libtvm_runtime.so", "libtvm_ffi.so"} <= needed
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6"}
    assert needed <= {"libtvm_runtime.so", "libtvm_ffi.so"} | system
    loads = [line.split() for line in text.splitlines() if line.split()[:1] == ["LOAD"]]
    assert {words[-1] for words in loads} == {"0x4000"}
    # What the runtime looks for, so that it takes the file instead of building one.
    assert f"bitfabric build key: {backend.build.build_key('opencl')}." in library.read_bytes(
    ).decode("latin-1")  # fmt: skip


def test_a_runtime_for_android_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="TVM publishes no runtime for it"):
        compile_model(
            MODEL, get_target("adreno"), OPTIONS, tmp_path / "tiny.fabric", with_runtime=True
        )
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_another_machines_runtime_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    target = for_host(get_target("cpu-neon"), "aarch64-apple-macos")
    with pytest.raises(FabricError, match="could not be downloaded") as caught:
        compile_model(MODEL, target, OPTIONS, tmp_path / "tiny.fabric", with_runtime=True)
    assert "network" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="no-such-package, which is not installed"):
        runtime_files.copy_installed("no-such-package", ("*",), tmp_path)
