"""`fabric bench`: what it measures, what it compares with, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from bitfabric.cli import bench_energy
from bitfabric.cli.bench_floor import floor, weight_bytes
from bitfabric.runtime.measure import Work

from ..runtime.remote_tools import Device
from .helpers import environment, fabric, fabric_json

PROMISED = {"tokens_per_s", "peak_memory_mib", "fraction_of_floor", "calibration"}
RATES = {"float32_gflops": 500.0, "int8_gops": 2000.0, "read_gb_s": 40.0}


@pytest.fixture
def program(tmp_path: Path):
    """Makes a program to compare with, which logs how it was started."""

    def write(body: str) -> Path:
        path = tmp_path / "other.py"
        log = f"print(json.dumps(sys.argv[1:]), file=open({str(tmp_path / 'log')!r}, 'a'))"
        path.write_text(f"#!{sys.executable}\nimport json, sys\n{log}\n{body}\n")
        path.chmod(0o755)
        return path

    return write


def test_training_has_what_is_promised_and_a_picture(bundle: Path, tmp_path: Path) -> None:
    found = fabric_json("bench", bundle, "--train", "--rounds", 2, "-o", tmp_path / "out")
    assert found.keys() >= PROMISED
    assert "ratio" not in found
    assert (found["work"], found["batch"], found["tokens"]) == ("train", 1, 64)
    low, high = found["spread"]
    assert 0 < low <= found["tokens_per_s"] <= high
    assert 30 < found["peak_memory_mib"] < 200
    assert found["floor"]["with_recompute"] < found["floor"]["tokens_per_s"]
    assert 0 < found["fraction_of_floor"] < 1
    assert found["fraction_of_floor"] == pytest.approx(
        found["tokens_per_s"] / found["floor"]["tokens_per_s"]
    )
    assert found["calibration"]["int8_gops"] > found["calibration"]["float32_gflops"] > 0
    energy = found["energy"]
    assert (energy["reason"] is None) == (energy["joules_per_token"] is not None)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == found
    drawn = ElementTree.parse(tmp_path / "out" / "bench.svg").getroot()
    words = [text.text or "" for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert any("tokens/s" in word for word in words)


def test_a_program_takes_turns_and_hears_of_the_work(bundle: Path, tmp_path: Path, program) -> None:
    other = program(
        "print('loading'); print(json.dumps({'tokens_per_s': 10, 'peak_memory_mib': 5}))"
    )
    found = fabric_json(
        "bench", bundle, "--decode", 4, "--context", 8, "--rounds", 2, "--threads", 1,
        "--against", f"{other} --own 7",
    )  # fmt: skip
    assert found["against"]["tokens_per_s"] == 10
    assert found["against"]["peak_memory_mib"] == 5
    assert found["ratio_spread"][0] <= found["ratio"] <= found["ratio_spread"][1]
    assert found["ratio"] == pytest.approx(found["tokens_per_s"] / 10)
    # One start for each round and one before, because it does not stay.
    started = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(started) == 3
    told = dict(zip(started[0][2::2], started[0][3::2], strict=True))
    assert started[0][:2] == ["--own", "7"]
    assert (told["--work"], told["--tokens"], told["--context"]) == ("decode", "4", "8")
    assert (told["--model"], told["--threads"], told["--lora-rank"]) == ("nano", "1", "2")
    assert json.loads(told["--config"])["hidden_size"] == 384


@pytest.mark.slow
def test_a_program_that_stays_is_asked_for_each_round(
    bundle: Path, tmp_path: Path, program
) -> None:
    other = program(
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    print(json.dumps({'tokens_per_s': n}), flush=True)\n"
        "    if not sys.stdin.readline(): break"
    )
    found = fabric_json("bench", bundle, "--prefill", 8, "--rounds", 3, "--against", other)
    assert found["against"]["tokens_per_s"] == statistics.median([2, 3, 4])
    assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('it has no such model')", "status 1: it has no such model"),
        ("print('{}')", "no line with tokens_per_s"),
        ("print(json.dumps({'tokens_per_s': 'fast'}))", 'tokens_per_s is "fast"'),
        ("print(json.dumps({'error': 'no GPU here.', 'remedy': 'Buy one.'}))", "no GPU here."),
    ],
    ids=["fails", "silent", "no number", "says why"],
)
def test_a_program_that_fails_is_named_with_its_words(
    bundle: Path, program, body: str, said: str
) -> None:
    done = fabric("bench", bundle, "--prefill", 8, "--against", program(body), "--json")
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert said in told["error"]
    assert told["remedy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--train", "--against", "/no/such/program"), "nothing to compare with"),
        (("--train", "--against", "onnxruntime"), "does not train"),
        (("--train", "--prefill", "8"), "Say what to measure"),
        ((), "Say what to measure"),
        (("--train", "--context", "32"), "rows of 64 tokens"),
        (("--train", "--device", "rpc://"), "does not name a device"),
    ],
)
def test_refusals(bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    done = fabric("bench", bundle, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_step_of_several_micro_batches_counts_all_its_tokens(bundle: Path) -> None:
    command = [sys.executable, "-m", "bitfabric.runtime.measure", str(bundle), "--work", "train"]
    run = subprocess.run(
        [*command, "--batch", "3"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(run.stdout)
    assert said["tokens"] % (3 * 64) == 0
    assert said["tokens_per_s"] > 0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing_behind(bundle: Path, tmp_path: Path, program) -> None:
    mark = tmp_path / "pid"
    other = program(
        f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    command = [sys.executable, "-m", "bitfabric.cli", "bench", str(bundle), "--prefill", "8"]
    process = subprocess.Popen(
        [*command, "--against", str(other)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (mark.is_file() and mark.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_the_floor_is_what_the_rates_allow(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    config = manifest["model"]["config"]
    packed = sum(
        entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("weights/")
    )
    assert weight_bytes(manifest) == pytest.approx(packed, rel=0.02)
    writing = floor(manifest, Work("decode", 2, 4, 8), RATES)
    assert writing["tokens_per_s"] == pytest.approx(2 * 40e9 / weight_bytes(manifest))
    hidden, ffn, layers = 384, 1024, config["num_layers"]
    kv = config["num_kv_heads"] * config["head_dim"]
    ternary = layers * hidden * (2 * hidden + 2 * kv + 3 * ffn)
    head = config["vocab_size"] * hidden
    training = floor(manifest, Work("train", 1, 64, 64), RATES)
    seconds = 2 * ternary / 2e12 + (2 * ternary + 4 * head) / 5e11
    assert training["tokens_per_s"] == pytest.approx(1 / seconds)
    assert training["with_recompute"] == pytest.approx(1 / (seconds + 2 * ternary / 2e12))
    device = floor(manifest, Work("train", 1, 64, 64), {"matrix_tflops": 1.0})
    assert device["tokens_per_s"] == pytest.approx(1e12 / (4 * (ternary + head)))
    assert floor(manifest, Work("train"), {"copy_gb_s": 1.0})["tokens_per_s"] is None


def test_energy_is_the_sum_of_the_packages(tmp_path: Path, monkeypatch) -> None:
    for number, energy in enumerate((999_000_000, 5_000_000)):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "energy_uj").write_text(str(energy))
        (folder / "max_energy_range_uj").write_text("1000000000")
        (tmp_path / f"intel-rapl:{number}:0").mkdir()
    monkeypatch.setattr(bench_energy, "POWERCAP", tmp_path)
    meter = bench_energy.Meter("cpu")
    before = meter.joules()
    # The first counter begins anew in between.
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("8000000")
    assert meter.joules() - before == pytest.approx(2.0 + 3.0)
    monkeypatch.setattr(bench_energy, "POWERCAP", tmp_path / "none")
    nothing = bench_energy.Meter("cpu")
    assert (nothing.joules(), nothing.source) == (None, None)
    assert "RAPL" in nothing.reason


@pytest.mark.skipif(os.name != "posix", reason="serving needs Android, Linux or macOS")
@pytest.mark.slow
def test_a_device_elsewhere_measures_both_sides_in_turns(bundle: Path, tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        found = fabric_json(
            "bench", bundle, "--prefill", 8, "--rounds", 1, "--against", bundle,
            "--device", f"rpc://127.0.0.1:{device.port}/{device.key}",
        )  # fmt: skip
    assert found["ratio"] == pytest.approx(found["tokens_per_s"] / found["against"]["tokens_per_s"])
    assert 30 < found["peak_memory_mib"] < 200
    assert found["calibration"] is None
    assert "elsewhere" in found["floor"]["reason"]
    assert "elsewhere" in found["energy"]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("against", ["torch", "onnxruntime"])
def test_other_stacks_run_the_same_shape(against: str) -> None:
    pytest.importorskip(against)
    found = fabric_json(
        "bench", "nano", "--decode", 4, "--context", 16, "--rounds", 1, "--head", "f16",
        "--against", against,
    )  # fmt: skip
    assert found["against"]["name"] == against
    assert found["ratio"] == pytest.approx(
        found["tokens_per_s"] / found["against"]["tokens_per_s"], rel=0.01
    )
    assert found["against"]["peak_memory_mib"] > found["peak_memory_mib"]
