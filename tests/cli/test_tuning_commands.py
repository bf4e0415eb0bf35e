"""`fabric tune` and `fabric records`: searches that end well or by Ctrl-C, and their records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bitfabric.targets import host_cpu

from ..runtime.remote_tools import Device
from .helpers import environment, fabric, fabric_json

SIZES = ("--context", 16, "--lora-rank", 2)
TARGET = host_cpu().name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for the module's records."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command keeps its records there."""
    monkeypatch.setenv("BITFABRIC_DATA", str(folder))


@pytest.fixture(scope="module")
def tuned(folder: Path) -> dict:
    """What a short tuning of nano says."""
    before = os.environ.get("BITFABRIC_DATA")
    os.environ["BITFABRIC_DATA"] = str(folder)
    try:
        return fabric_json("tune", "nano", *SIZES, "--trials", 6, "--no-gain", "--seed", 3)
    finally:
        if before is None:
            del os.environ["BITFABRIC_DATA"]
        else:
            os.environ["BITFABRIC_DATA"] = before


def test_a_tuning_measures_and_keeps_records(tuned: dict, folder: Path) -> None:
    assert tuned["trials"] == 6
    assert tuned["target"] == TARGET
    assert tuned["failures"] == {}
    searched = [kernel for kernel in tuned["kernels"] if kernel["trials"]]
    assert sum(kernel["trials"] for kernel in searched) == 6
    assert sum(kernel["share"] for kernel in tuned["kernels"]) == pytest.approx(1.0)
    assert all(k["after_seconds"] <= k["before_seconds"] for k in tuned["kernels"])
    lines = (folder / "records" / f"{TARGET}.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {kernel["key"] for kernel in searched}
    tried = (folder / "trials" / f"{TARGET}.jsonl").read_text().splitlines()
    assert len(tried) == 6


@pytest.mark.slow
def test_compile_uses_them_and_says_so(tuned: dict, tmp_path: Path) -> None:
    done = fabric("compile", "nano", *SIZES, "-o", tmp_path / "nano.fabric")
    count = sum(1 for kernel in tuned["kernels"] if kernel["trials"])
    assert f"Kernels: {count} tuned, " in done.stdout
    account = json.loads((tmp_path / "nano.fabric" / "tuning.json").read_text())
    records = [entry["record"] for entry in account["kernels"].values() if "record" in entry]
    assert len([r for r in records if r["device"] == tuned["device"]]) >= count


@pytest.mark.slow
def test_a_second_run_searches_only_what_has_no_record(tuned: dict) -> None:
    again = fabric_json("tune", "nano", *SIZES, "--trials", 0, "--no-gain")
    known = {kernel["key"] for kernel in tuned["kernels"] if kernel["trials"]}
    assert {kernel["key"] for kernel in again["kernels"] if not kernel["searched"]} == known
    assert again["trials"] == 0


@pytest.mark.slow
def test_records_go_to_another_machine_and_back(tuned: dict, tmp_path: Path) -> None:
    shown = fabric_json("records", "show")
    own = [record for record in shown["records"] if record["from"] == "own"]
    assert own
    exported = fabric_json("records", "export", "-o", tmp_path / "a.jsonl")
    assert exported["records"] == len(shown["records"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "b.jsonl").write_text(lines[0] + "\n")
    merged = fabric_json(
        "records", "merge", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "-o", tmp_path / "c.jsonl"
    )
    assert merged["records"] == len(lines)
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert fabric_json("records", "import", tmp_path / "c.jsonl")["records"] == len(lines)
    after = fabric_json("records", "show")["records"]
    assert [r["hash"] for r in after] == [r["hash"] for r in shown["records"]]


@pytest.mark.slow
def test_a_damaged_file_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    own = folder / "records" / f"{TARGET}.jsonl"
    before = own.read_bytes() if own.exists() else b""
    (tmp_path / "bad.jsonl").write_text('{"schema": 1, "key": "0"}\n')
    done = fabric("records", "import", tmp_path / "bad.jsonl")
    assert done.returncode == 2
    assert "bad.jsonl, line 1" in done.stderr
    assert (own.read_bytes() if own.exists() else b"") == before
    assert fabric("records", "import", tmp_path / "none.jsonl").returncode == 2


@pytest.mark.slow
def test_a_foreign_target_can_not_be_tuned_here() -> None:
    foreign = "cpu-avx2" if TARGET == "cpu-neon" else "cpu-neon"
    done = fabric("tune", "nano", "--target", foreign, "--no-gain")
    assert done.returncode == 2
    assert "is not this machine's" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="serving needs Android, Linux or macOS")
@pytest.mark.slow
def test_a_device_elsewhere_is_tuned_and_its_records_kept_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFABRIC_DATA", str(tmp_path / "data"))
    with Device(tmp_path / "store") as device:
        found = fabric_json(
            "tune", "nano", *SIZES, "--trials", 2, "--no-gain",
            "--device", f"rpc://127.0.0.1:{device.port}/{device.key}",
        )  # fmt: skip
        refused = fabric(
            "tune", "nano", *SIZES, "--target", "cpu-avx2" if TARGET == "cpu-neon" else "cpu-neon",
            "--device", f"rpc://127.0.0.1:{device.port}/{device.key}",
        )  # fmt: skip
    assert found["trials"] == 2
    assert found["failures"] == {}
    assert found["target"] == TARGET
    assert found["device"]["threads"] > 0
    lines = (tmp_path / "data" / "records" / f"{TARGET}.jsonl").read_text().splitlines()
    assert {json.loads(line)["device"]["name"] for line in lines} == {found["device"]["name"]}
    assert refused.returncode == 2
    assert "can't run the target" in refused.stderr


def test_without_xgboost_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'xgboost' else find(name, *rest)\n"
        "from bitfabric.cli import main; main(['tune', 'nano'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert "pip install 'bitfabric[tune]'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_found(folder: Path) -> None:
    log = folder / "trials" / f"{TARGET}.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    command = [sys.executable, "-m", "bitfabric.cli", "tune", "nano", *map(str, SIZES)]
    process = subprocess.Popen(
        [*command, "--trials", "100000", "--resume", "--no-gain", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    end = time.monotonic() + 200
    while not log.exists() or len(log.read_text().splitlines()) < before + 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in json.loads(stdout.splitlines()[-1])["remedy"]
    lines = log.read_text().splitlines()
    assert len(lines) >= before + 3
    identities = [(line["key"], str(line["decisions"])) for line in map(json.loads, lines)]
    assert len(set(identities)) == len(identities)
