"""Bundles for Apple's systems made anywhere: the library's form, its signature, what it carries."""

from __future__ import annotations

import plistlib
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.compiler.mach_o import BUILD_VERSION, CODE_SIGNATURE, commands, page_hashes
from bitfabric.models import RandomCheckpoint
from bitfabric.runtime import open_bundle
from bitfabric.targets import FabricError, get_target

from ..parity.conftest import BASE
from .test_cross_link import read_mach_o

pytest.importorskip("ziglang")
pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac links its own")
MODEL = RandomCheckpoint(BASE, seed=3, name="random:tiny")
OPTIONS = CompileOptions(context=12, lora=LoraOptions(rank=4))
NAME = 0xD
"""LC_ID_DYLIB: what a library calls itself."""


@pytest.mark.parametrize(
    ("target", "platform", "least"), [("metal", 1, (11, 0)), ("ios-a16", 2, (16, 0))]
)
@pytest.mark.slow
def test_a_library_of_apples_is_whole_and_signed(
    target: str, platform: int, least: tuple[int, int], tmp_path: Path
) -> None:
    bundle = compile_model(MODEL, get_target(target), OPTIONS, tmp_path / "tiny.fabric")
    library = (bundle / "module.so").read_bytes()
    kind, _, libraries, undefined = read_mach_o(library)
    assert kind == ("arm64", "dylib")
    assert libraries == {"/usr/lib/libSystem.B.dylib"}
    # The conversions of 16-bit floats that TVM refers to are in the library itself.
    assert undefined == {"_TVMFFIErrorSetRaisedFromCStrParts", "dyld_stub_binder"}
    places = dict(commands(library))
    number, version = struct.unpack_from("<2I", library, places[BUILD_VERSION] + 8)
    assert (number, version) == (platform, least[0] << 16 | least[1] << 8)
    begin = places[NAME] + struct.unpack_from("<I", library, places[NAME] + 8)[0]
    assert library[begin : library.index(b"\0", begin)] == b"@rpath/module.so"
    assert str(tmp_path).encode() not in library
    # Every page of the file is as the ad-hoc signature says, and one that changes is not.
    assert CODE_SIGNATURE in places
    (end, _) = struct.unpack_from("<2I", library, places[CODE_SIGNATURE] + 8)
    hashes = list(page_hashes(library))
    assert len(hashes) == -(-end // 16384)
    assert all(library[slot : slot + 32] == digest for slot, digest in hashes)
    changed = bytearray(library)
    changed[40] ^= 1
    differ = [slot for slot, new in page_hashes(changed) if library[slot : slot + 32] != new]
    assert len(differ) == 1


def test_a_bundle_carries_the_sources_and_opens_anywhere(tmp_path: Path) -> None:
    path = compile_model(MODEL, get_target("metal-m1"), OPTIONS, tmp_path / "tiny.fabric")
    module = (path / "module.so").read_bytes()
    assert module.count(b"#include <metal_stdlib>") > 50
    with pytest.raises(FabricError, match="aarch64-apple-macos"):
        open_bundle(path)
    bundle = open_bundle(path, foreign=True)
    assert bundle.kind == "metal"
    assert bundle.manifest["target"]["limits"]["shared_bytes"] == 32 << 10
    model = (path / "embed" / "model.h").read_text()
    assert "kDevice{kDLMetal, 0}" in model
    assert '"libtvm_runtime_metal.dylib"' in model
    assert "Put it into a program" in (path / "DEPLOY.md").read_text()


@pytest.mark.slow
def test_a_phones_bundle_says_how_to_make_a_framework(tmp_path: Path) -> None:
    path = compile_model(MODEL, get_target("ios"), OPTIONS, tmp_path / "tiny.fabric")
    notes = (path / "DEPLOY.md").read_text()
    assert "sh make_framework.sh" in notes
    assert "pip install bitfabric" not in notes
    script = path / "make_framework.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    plist = script.read_text().split("<<'PLIST'\n")[1].split("PLIST\n")[0]
    assert plistlib.loads(plist.encode())["CFBundleExecutable"] == "Model"
    assert "make_framework.sh" in open_bundle(path, foreign=True).manifest["files"]


def test_no_runtime_is_brought_for_a_phone(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="can't serve iOS"):
        compile_model(MODEL, get_target("ios"), OPTIONS, tmp_path / "a.fabric", with_runtime=True)
