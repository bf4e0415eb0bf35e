"""A bundle runs on TVM's runtime alone, and a damaged or foreign one is refused with its reason."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitfabric.models.packing import unpack
from bitfabric.runtime import open_bundle
from bitfabric.runtime.bundle import BundleError
from bitfabric.targets.manifest import digest

from ..parity.conftest import Compiled, compile_tiny


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_tiny(tmp_path_factory.mktemp("bundle"), {})


@pytest.fixture
def copy(compiled: Compiled, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled.bundle.path, tmp_path / "copy.fabric"))


def edit(folder: Path, change: Callable[[dict], None], sign: bool = True) -> None:
    """Change the manifest, and sign it again as an honest writer would."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    if sign:
        manifest["digest"] = digest(manifest)
    file.write_text(json.dumps(manifest))


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


def test_weights_in_the_bundle_are_the_models_bit_for_bit(compiled: Compiled) -> None:
    model, layers = compiled.model, compiled.bundle.layers
    for layer in range(model.config.num_layers):
        for name, modules in (("qkv", ("q_proj", "k_proj", "v_proj")), ("down", ("down_proj",))):
            weights = [model.ternary(layer, module) for module in modules]
            expected = np.concatenate([weight.codes for weight in weights])
            np.testing.assert_array_equal(unpack(layers[layer][name], expected.shape[1]), expected)
            scales = np.array([weight.scale for weight in weights], np.float32)
            np.testing.assert_array_equal(layers[layer][f"{name}_scale"], scales)
    np.testing.assert_array_equal(compiled.bundle.ends["embedding"], model.embedding())


def test_module_so_opens_its_siblings(copy: Path) -> None:
    assert open_bundle(copy / "module.so").path == copy


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "not a bundle" in refused(tmp_path)


def test_a_truncated_file_is_named(copy: Path) -> None:
    file = copy / "weights" / "layer_001.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert "layer_001.bin has" in refused(copy)


def test_an_altered_file_is_named(copy: Path) -> None:
    file = copy / "weights" / "ends.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert "ends.bin was altered" in refused(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "weights" / "layer_000.bin").unlink()
    assert "layer_000.bin is missing" in refused(copy)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    edit(copy, lambda m: m["lora"].update(alpha=1.0), sign=False)
    assert "changed after it was written" in refused(copy)


def test_garbage_for_a_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    assert "not readable as a manifest" in refused(copy)


def test_an_older_schema_asks_to_compile_again(copy: Path) -> None:
    edit(copy, lambda m: m.update(schema=1))
    assert "older version (schema 1)" in refused(copy)


def test_a_newer_schema_asks_for_an_upgrade(copy: Path) -> None:
    edit(copy, lambda m: m.update(schema=99))
    assert "newer version (schema 99" in refused(copy)


def test_a_processor_without_the_features_is_refused(copy: Path) -> None:
    edit(copy, lambda m: m["target"].update(name="cpu-x", features=["tile-of-tomorrow"]))
    assert "lacks tile-of-tomorrow" in refused(copy)


def test_another_architecture_is_refused(copy: Path) -> None:
    edit(copy, lambda m: m["target"].update(host="riscv64-linux-gnu"))
    assert "was compiled for" in refused(copy)


def test_the_runtime_loads_no_compiler_and_opens_quickly(compiled: Compiled) -> None:
    program = """
import sys, time
begin = time.perf_counter()
from bitfabric.runtime import TrainingEngine, open_bundle
engine = TrainingEngine(open_bundle(sys.argv[1]))
seconds = time.perf_counter() - begin
engine.initialize_adapter(0)
import numpy as np
from bitfabric.runtime import Batch
row = np.zeros((1, engine.context), np.int32)
engine.accumulate(Batch(row, row, row), 1.0, 0)
maps = open("/proc/self/maps").read()
assert "libtvm_runtime" in maps
assert "libtvm_compiler" not in maps, "the compiler library is loaded"
assert "torch" not in sys.modules, "torch is loaded"
print(seconds)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, str(compiled.bundle.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 1.0


def test_a_foreign_bundle_may_be_looked_at(copy: Path) -> None:
    edit(copy, lambda m: m["target"].update(host="riscv64-linux-gnu"))
    assert open_bundle(copy, foreign=True).manifest["target"]["host"].startswith("r")


def broken(value: object, generator: random.Random) -> object:
    """One value of a manifest, replaced by something that it must not be."""
    return generator.choice([None, -1, 2**70, "", "../x", [], {}, [value], {"x": value}, 0.5])


def test_a_manifest_of_nonsense_is_refused_or_harmless(copy: Path) -> None:
    original = (copy / "manifest.json").read_text()
    refusals = 0
    for seed in range(300):
        generator = random.Random(seed)
        manifest = json.loads(original)
        node = manifest
        while True:
            place = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[place], (dict, list)) or not node[place]:
                break
            if generator.random() < 0.2:
                break
            node = node[place]
        if isinstance(node, dict) and generator.random() < 0.3:
            del node[place]
        else:
            node[place] = broken(node[place], generator)
        manifest["digest"] = digest(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        try:
            bundle = open_bundle(copy)
            assert len(bundle.layers) + 1 == len(bundle.manifest["weights"])
        except BundleError:
            refusals += 1
    # Much of a manifest only tells what was made: a third of the changes is of what is needed.
    assert refusals > 80


def test_random_bytes_for_a_manifest_are_refused(copy: Path) -> None:
    original = (copy / "manifest.json").read_bytes()
    for seed in range(200):
        generator = random.Random(seed)
        content = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (copy / "manifest.json").write_bytes(content)
        if bytes(content) != original:
            with contextlib.suppress(BundleError):
                # A change of white space alone leaves the same manifest.
                assert open_bundle(copy).manifest == json.loads(original)
