"""`fabric doctor --report`: numbers of every device, and nothing of the person or the computer."""

from __future__ import annotations

import getpass
import json
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.cli import report
from bitfabric.cli.output import Output
from bitfabric.runtime.backends import devices

from ..devices import needs
from ..targets.metal_descriptions import M1

SECRETS = {"serial_number": "C02XK1234567", "uuid": "89a4e1d0-7c1e-4d5b", "registry": 4294968000}


def assert_private(content: Any) -> None:
    """Check that no text tells who and where; `content` is what the file holds."""
    text = json.dumps(content)
    assert Path.home().as_posix() not in text
    for name in (getpass.getuser(), platform.node()):
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), name
    assert not re.search(r"(?:^|[\s\"'(])/(?:\w+/)+\w", text)
    for secret in SECRETS.values():
        assert str(secret) not in text


def test_texts_lose_names_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "engine.lovelace.example")
    said = {
        "error": "OSError: [Errno 2] '/home/ada/models/x.so' at Engine.Lovelace.example, by ada",
        "other": ["C:\\Users\\ada\\x.dll is not there", "engine: adapter", 3, None, 0.5],
    }
    assert report.scrubbed(said) == {
        "error": "OSError: [Errno 2] '<path>' at <name>, by <name>",
        "other": ["<path> is not there", "<name>: adapter", 3, None, 0.5],
    }
    speed = "300 tokens/s of 1/2"
    assert report.scrubbed(speed) == speed


def test_of_a_device_only_known_facts_are_told() -> None:
    found = report._facts({**M1, **SECRETS, "kind": "metal"})
    assert found["name"] == "Apple M1"
    assert found["families"] == ["Apple7"]
    assert (found["used"], found["target"]) == (True, "metal-m1")
    assert not set(SECRETS) & set(found)
    assert_private(found)


def test_numbers_that_differ_by_their_size_are_wrong() -> None:
    right = {"training loss": np.array(9.0), "gradient of a": np.ones(4)}
    near = {"training loss": np.array(9.001), "gradient of a": np.ones(4) * 1.01}
    assert all(each["passed"] for each in report._compared(near, right))
    far = {"training loss": np.array(9.5), "gradient of a": -np.ones(4)}
    assert [each["passed"] for each in report._compared(far, right)] == [False, False]
    nothing = {"training loss": np.array(np.nan), "gradient of a": np.ones(4) * np.nan}
    assert not any(each["passed"] for each in report._compared(nothing, right))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("opencl", marks=needs("opencl"))])
def test_a_report_has_every_number_of_a_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_DEVICE", f"{kind}:0")
    found = [{**device, **SECRETS, "kind": kind} for device in devices(kind)]
    checks = [{"subject": "packages", "state": "ok", "detail": f"in {Path.home()}", "remedy": ""}]
    content = report.gather(Output(), checks, found)
    assert_private(content)
    assert content["checks"] == [{"subject": "packages", "state": "ok"}]
    here, there = content["measured"]
    assert (here["device"], there["device"]) == ("cpu", f"{kind}:0")
    for measured in (here, there):
        assert len(measured["kernels"]) > 30
        assert all(each["passed"] for each in measured["kernels"]), measured["kernels"]
        assert set(measured["speeds"]) == {"training", "prefill", "decode"}
        assert all(rate > 0 for rate in measured["speeds"].values())
    names = [each["of"] for each in there["numbers"]]
    assert {"training loss", "logits after a prompt", "gradient norm"} <= set(names)
    assert sum(name.startswith("gradient of") for name in names) > 50
    assert all(each["passed"] for each in there["numbers"]), there["numbers"]
