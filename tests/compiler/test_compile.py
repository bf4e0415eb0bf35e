"""Compiling: the adjoint is derived, the bundle is reproducible, and a failure leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model, link
from bitfabric.compiler.pipeline import build_graph
from bitfabric.models import RandomCheckpoint
from bitfabric.targets import FabricError, get_target, host_triple, list_targets, machine

from ..parity.conftest import BASE, compile_tiny

OPTIONS = CompileOptions(context=8, lora=LoraOptions(rank=2), head="f16")


def test_layer_functions_do_not_grow_with_depth() -> None:
    def kernels(depth: int) -> set[str]:
        module = build_graph(replace(BASE, num_layers=depth), OPTIONS)
        return {variable.name_hint for variable in module.get_global_vars()}

    assert kernels(2) == kernels(6)


def test_the_adjoint_recomputes_no_more_than_it_needs() -> None:
    module = build_graph(BASE, OPTIONS)
    text = module["layer_vjp"].script()
    # Forward: qkv, o, gate_up; the down projection's own output is dead in the adjoint.
    assert text.count("bitlinear_kernel") == 3
    assert text.count("bitlinear_vjp_kernel") == 4


@pytest.mark.slow
def test_debug_dump_writes_the_ir_of_every_phase(tmp_path: Path) -> None:
    compile_tiny(tmp_path, {}, debug_dump=tmp_path / "ir")
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names == ["1-graph.py", "2-fused.py", "3-scheduled.py", "4-lowered.py"]


@pytest.mark.slow
def test_two_compilations_give_the_same_weights_and_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for name in "ab":
        monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path / f"cache-{name}"))
        manifests.append(compile_tiny(tmp_path / name, {}).bundle.manifest)
    first, second = manifests
    for manifest in manifests:
        # The linker may stamp the shared object; everything of ours is reproducible.
        del manifest["files"]["module.so"], manifest["digest"]
    assert first == second


def test_an_output_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("x")
    with pytest.raises(FabricError, match="is not a bundle"):
        compile_model(RandomCheckpoint(BASE, 0, "t"), get_target("cpu"), OPTIONS, precious)
    assert (precious / "chapter.txt").read_text() == "x"


@pytest.mark.slow
def test_a_failure_leaves_the_old_bundle_and_no_litter(tmp_path: Path) -> None:
    compiled = compile_tiny(tmp_path, {})

    class Broken(RandomCheckpoint):
        def ternary(self, layer: int, module: str):
            if layer == 1:
                raise FabricError("layer 1 is broken", "mend it")
            return super().ternary(layer, module)

    before = json.loads((compiled.bundle.path / "manifest.json").read_text())
    with pytest.raises(FabricError, match="layer 1 is broken"):
        compile_model(Broken(BASE, 0, "t"), get_target("cpu"), OPTIONS, compiled.bundle.path)
    assert [path.name for path in tmp_path.iterdir()] == [compiled.bundle.path.name]
    assert json.loads((compiled.bundle.path / "manifest.json").read_text()) == before


def test_without_a_linker_the_remedy_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FabricError, match=r"bitfabric\[linker\]"):
        link.linker(get_target("cpu"))


def test_another_machines_target_needs_a_linker_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(t for t in list_targets() if not host_triple(t).startswith(machine()))
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FabricError, match=f"no linker for {other.name}"):
        link.linker(other)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: object())
    assert "ziglang" in link.linker(other)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"head": "q4"}, "head format"),
        ({"packing": "1bit"}, "packing"),
        ({"moments": "int4"}, "format of moments"),
        ({"kv_cache": "int4"}, "format of a cache"),
        ({"context": 0}, "context"),
        ({"lora": {"rank": 0}}, "rank"),
        ({"lora": {"modules": ("q_prog",)}}, "q_prog"),
        ({"lora": {"dropout": 1.0}}, "dropout"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: dict, word: str) -> None:
    with pytest.raises(FabricError, match=word):
        CompileOptions(**{k: LoraOptions(**v) if k == "lora" else v for k, v in arguments.items()})
