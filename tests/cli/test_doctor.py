"""`fabric doctor`: it finds what is wrong, names the remedy, and survives a driver's crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.cli import checkup, checkup_devices
from bitfabric.cli.checkup import MISSING, OK, PROBLEM, Row
from bitfabric.cli.drivers import DRIVERS
from bitfabric.runtime.self_test import Check
from bitfabric.targets import APIS

from ..devices import every_api
from ..targets.descriptions import ADRENO_830, CLOVER, H200, POCL
from ..targets.vulkan_descriptions import H200 as VULKAN_H200
from ..targets.vulkan_descriptions import LAVAPIPE
from .helpers import environment, fabric, fabric_json


def _doctor(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run `fabric doctor --json` with more variables in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "bitfabric.cli", "doctor", "--json"],
        env={**environment(), **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def _rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    return {row["subject"]: row for row in checks}


def test_here_the_processor_works() -> None:
    found = fabric_json("doctor")
    assert set(found) == {"cpu", *APIS, "checks", "devices"}
    assert found["cpu"] is True
    rows = {row["subject"]: row for row in found["checks"]}
    for subject in ("Python", "packages", "runtime", "compiler", "processor"):
        assert rows[subject]["state"] == OK, rows[subject]
    assert "apache-tvm 0.27.0.post1" in rows["packages"]["detail"]
    for row in found["checks"]:
        assert (row["state"] == OK) == (row["remedy"] == "")
    shown = fabric("doctor")
    assert shown.returncode == 0
    assert "The processor is ready" in shown.stdout


@every_api
@pytest.mark.slow
def test_a_real_device_computes_rightly(kind: str) -> None:
    found = fabric_json("doctor")
    assert f"{kind}:0" in found[kind]
    (row,) = (row for row in found["checks"] if row["subject"] == f"{kind}:0")
    for check in ("32-bit floats", "sums over a work-group", "8-bit dot products"):
        assert check in row["detail"]


def test_a_wrong_number_fails_its_check() -> None:
    assert Check("x", 1e-6, 1e-5).passed
    assert not Check("x", 1e-4, 1e-5).passed
    assert not Check("x", float("inf"), 1e-5).passed


def test_without_a_driver_it_says_what_to_install(tmp_path: Path) -> None:
    done = _doctor(OCL_ICD_VENDORS=str(tmp_path))
    rows = _rows(done)
    assert done.returncode == 0
    assert rows["OpenCL drivers"]["state"] == MISSING
    assert "pocl-opencl-icd" in rows["OpenCL drivers"]["remedy"]
    assert f"OCL_ICD_VENDORS={tmp_path}" in rows["OpenCL variables"]["detail"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.slow
def test_a_driver_that_crashes_is_reported_and_does_not_take_the_doctor_with_it(
    tmp_path: Path,
) -> None:
    source, library = tmp_path / "crash.c", tmp_path / "libcrash.so"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = _doctor(FABRIC_OPENCL_LIB=str(library))
    assert done.returncode == 0, done.stderr
    row = _rows(done)["OpenCL devices"]
    assert row["state"] == PROBLEM
    assert "crashed (SIGABRT)" in row["detail"]
    assert "driver" in row["remedy"]


def test_without_a_linker_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    real = checkup.find_spec
    monkeypatch.setattr(checkup, "find_spec", lambda n: None if n == "ziglang" else real(n))
    row = checkup.check_compiler()
    assert row.state == MISSING
    assert "apt install g++" in row.remedy
    assert "bitfabric[linker]" in row.remedy
    monkeypatch.setenv("ANDROID_ROOT", "/system")
    assert "pkg install clang" in checkup.check_compiler().remedy


def test_a_linker_that_fails_is_told_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such thing as ld >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    row = checkup.check_compiler()
    assert row.state == PROBLEM
    assert "no such thing as ld" in row.detail


@pytest.mark.parametrize(
    ("found", "pin", "fine"),
    [
        ("0.27.0.post1", "==0.27.0.post1", True),
        ("0.27.0", "==0.27.0.post1", False),
        ("0.1.15", "==0.1.14.post1", False),
        ("8.10.1", ">=8.9", True),
        ("8.1", ">=8.9", False),
        ("13.9.4", ">=13.7,>=1", True),
        ("2.0", "", True),
        (None, "", False),
    ],
)
def test_versions_are_compared_with_the_pins(found: str | None, pin: str, fine: bool) -> None:
    assert checkup.fits(found, pin) is fine


def test_wrong_and_missing_packages_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = [
        "apache-tvm==0.27.0.post1",
        "click>=99",
        "no-such-package>=1.0",
        'tomli>=2.0; python_version < "3.11"',
        'no-such-tuner>=2; extra == "tune"',
        'pytest>=8; extra == "test"',
    ]
    monkeypatch.setattr(checkup, "requires", lambda name: needs)
    rows = {row.subject: row for row in checkup.check_packages()}
    assert rows["package click"].state == PROBLEM
    assert "pip install 'click>=99'" in rows["package click"].remedy
    assert rows["package no-such-package"].state == MISSING
    assert "package apache-tvm" not in rows
    assert rows["extras"].detail.endswith("pip install 'bitfabric[tune]'")


def test_no_installation_at_all_is_a_problem() -> None:
    (row,) = checkup.check_packages("no-such-distribution")
    assert row.state == PROBLEM


def test_a_failing_basic_is_exit_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    import click.testing
    from bitfabric.cli import doctor, main

    bad = Row("compiler", MISSING, "no C++ compiler", "apt install g++")
    monkeypatch.setattr(doctor, "check_compiler", lambda: bad)
    monkeypatch.setattr(doctor, "_graphics", lambda api: ([], []))
    done = click.testing.CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout.splitlines()[-1])["cpu"] is False
    shown = click.testing.CliRunner().invoke(main, ["doctor"]).stdout
    assert "apt install g++" in shown
    assert "not whole" in shown


def test_what_the_devices_answered_becomes_rows() -> None:
    good = [{"name": "32-bit floats", "error": "1e-7", "passed": True}]
    wrong = [*good, {"name": "8-bit dot products", "error": "12.0", "passed": False}]
    devices = [
        {**device, "index": i} for i, device in enumerate((H200, POCL, CLOVER, H200, ADRENO_830))
    ]
    lines = [
        {"devices": devices},
        {"index": 0, "checks": good},
        {"index": 1, "checks": wrong},
        {"index": 3, "error": "out of memory"},
    ]
    opencl = APIS["opencl"]
    rows, listed = checkup_devices.rows_of(opencl, lines, -11)
    assert listed == devices
    assert [row.state for row in rows] == [OK, PROBLEM, PROBLEM, PROBLEM, PROBLEM]
    assert "--target opencl-nvidia" in rows[0].detail
    assert "computes wrong: 8-bit dot products (off by 12.0)" in rows[1].detail
    assert "OpenCL 1.1" in rows[2].detail
    assert "out of memory" in rows[3].detail
    assert "crashed (SIGSEGV) in the self-test" in rows[4].detail
    (row,), _ = checkup_devices.rows_of(opencl, [], None)
    assert "did not come back" in row.detail


def test_a_graphics_processor_without_a_driver_is_noticed(tmp_path: Path) -> None:
    for name, kind, maker in (
        ("0", "0x030200", "0x10de"),
        ("1", "0x030000", "0x8086"),
        ("2", "0x020000", "0x1002"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(kind + "\n")
        (tmp_path / name / "vendor").write_text(maker + "\n")
    opencl = APIS["opencl"]
    (intel,) = checkup_devices.check_unused(opencl, [H200, POCL], str(tmp_path))
    assert intel.subject == "Intel graphics"
    assert "intel-opencl-icd" in intel.remedy
    nvidia = checkup_devices.check_unused(opencl, [POCL], str(tmp_path))[0]
    assert "nvidia-opencl-icd" in nvidia.remedy
    intel = checkup_devices.check_unused(APIS["vulkan"], [VULKAN_H200, LAVAPIPE], str(tmp_path))[0]
    assert intel.remedy == "Run: apt install mesa-vulkan-drivers"


def test_drivers_are_listed_with_their_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name, text in (
        ("opencl", "vendor.icd", "libvendor.so.1\n"),
        ("vulkan", "vendor.json", '{"ICD": {"library_path" : "libvendor.so.1"}}'),
    ):
        (tmp_path / name).write_text(text)
        drivers = replace(DRIVERS[kind], folders=(str(tmp_path),), folder_variable="")
        monkeypatch.setitem(DRIVERS, kind, drivers)
        row = checkup_devices.check_drivers(APIS[kind])[0]
        assert row.state == OK
        assert f"{name} (libvendor.so.1)" in row.detail
