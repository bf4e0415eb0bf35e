"""llama.cpp itself, from the wheel xllamacpp, on what fabric exports: the same next tokens.

llama.cpp does not round activations as W1.58A8 does, so its probabilities are near, not equal. The
model is nano with its gate taken as SiLU, which every llama.cpp computes for this architecture.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.models import Checkpoint, open_model
from bitfabric.models.gguf.export import export_gguf
from bitfabric.runtime.gguf_adapter import write_gguf_adapter
from bitfabric.runtime.gguf_base import base_of_config
from bitfabric.runtime.low_rank import LowRank
from tokenizers import Tokenizer

from ..reference.torch_bitnet import TorchBitNet, random_adapter

llama_cpp = pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp")

NANO = Path(__file__).parents[2] / "models" / "nano"
PROMPTS = (
    "Q: Does bracing improve dynamic stability in chronic ankle instability subjects?\nA:",
    "The history of the English language begins",
    "Permission is hereby granted, free of charge, to any person",
)
RANK, ALPHA = 4, 6.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = Path(shutil.copytree(NANO, tmp_path_factory.mktemp("silu") / "nano"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    return open_model(str(folder))


def theirs(path: Path, adapter: Path | None) -> list[dict[str, float]]:
    """The likeliest next tokens of each prompt and their log-probabilities."""
    parameters = llama_cpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cpuparams.n_threads = 1
    if adapter is not None:
        lora = llama_cpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        parameters.lora_adapters = [lora]
    server = llama_cpp.Server(parameters)
    found = []
    for prompt in PROMPTS:
        request = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "n_probs": 3}
        answer: Any = server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        (first,) = answer["choices"][0]["logprobs"]["content"]
        found.append({top["token"]: top["logprob"] for top in first["top_logprobs"]})
    return found


def ours(model: Checkpoint, adapter: dict[str, np.ndarray]) -> list[dict[str, float]]:
    tokenizer = Tokenizer.from_str(model.tokenizer_files["tokenizer.json"].decode())
    reference = TorchBitNet(model, adapter, ALPHA / RANK)
    found = []
    for prompt in PROMPTS:
        tokens = np.array([tokenizer.encode(prompt).ids], np.int32)
        logs = reference.logits(tokens)[0, -1].detach().log_softmax(-1).numpy()
        best = np.argsort(-logs)[:3]
        found.append({tokenizer.decode([int(i)]): float(logs[i]) for i in best})
    return found


@pytest.mark.parametrize("kind", ["F16", "TQ2_0"])
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_llama_cpp_predicts_what_we_predict(
    model: Checkpoint, kind: str, adapted: bool, tmp_path: Path
) -> None:
    export_gguf(model, tmp_path / "model.gguf", kind)
    tensors = random_adapter(model.config, rank=RANK, seed=1) if adapted else {}
    tensors = {name: np.float32(0.3) * value for name, value in tensors.items()}
    file = None
    if adapted:
        file = tmp_path / "adapter.gguf"
        factors = LowRank(tmp_path, tensors, RANK, ALPHA)
        write_gguf_adapter(file, factors, base_of_config(model.config.to_dict()))
    found, expected = theirs(tmp_path / "model.gguf", file), ours(model, tensors)
    if adapted:
        assert expected != ours(model, {})
    for one, other in zip(found, expected, strict=True):
        assert max(one, key=one.get) == max(other, key=other.get)
        for token in one.keys() & other.keys():
            assert one[token] == pytest.approx(other[token], abs=0.2)
