"""The published models of every family, and what has been verified for the family and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One model on the Hugging Face Hub.

    Parameters
    ----------
    repository : str
        ``owner/name``.
    revision : str
        The commit to fetch, or ``main`` where none is known for certain.
    source : str
        Who names that commit; empty for ``main``.
    file : str
        The .gguf file, for a repository of such; empty otherwise.
    """

    repository: str
    revision: str = "main"
    source: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """What `fabric compile` takes."""
        file = f"#{self.file}" if self.file else ""
        return f"hf://{self.repository}@{self.revision}{file}"


@dataclass(frozen=True)
class Verified:
    """A family's models, with what the tests have shown of it.

    Parameters
    ----------
    family : str
        Name of the row in `families.FAMILIES`.
    gguf : tuple of str
        The architectures that GGUF files of the family have.
    checks : tuple of str
        What was verified on tiny models of the family, each with the reference.
    models : tuple of Published
        What is known to be published.
    """

    family: str
    gguf: tuple[str, ...]
    checks: tuple[str, ...]
    models: tuple[Published, ...]


PUBLISHED_WEIGHTS = (
    "Every check is on tiny models with random weights, which the tests make. The published "
    "weights themselves were not at hand, and no number about them is claimed."
)

_CODES = "codes and scales, packed and as masters, bit for bit against PyTorch"
_GGUF = (
    "GGUF, bit for bit: TQ1_0, TQ2_0 and F16 against the package gguf, I2_S against bitnet.cpp's "
    "layouts written out again"
)
_LLAMA_CPP = "GGUF and GGUF adapter: next tokens against llama.cpp itself (SiLU gate)"
_DENSE = (
    "float16 weights, to compare with: logits, losses and LoRA gradients against transformers and "
    "PEFT",
)

CATALOG = (
    Verified(
        "bitnet",
        ("bitnet", "bitnet-b1.58", "bitnet-25"),
        (_CODES, _GGUF, _LLAMA_CPP, "logits against transformers' BitNetForCausalLM"),
        (
            Published(
                "microsoft/bitnet-b1.58-2B-4T",
                "04c3b9ad9361b824064a1f25ea60a8be9599b127",
                "several public projects that pin it",
            ),
            Published("microsoft/bitnet-b1.58-2B-4T-bf16"),
            Published("microsoft/bitnet-b1.58-2B-4T-gguf", file="ggml-model-i2_s.gguf"),
        ),
    ),
    Verified(
        "1bitllm",
        ("bitnet",),
        (
            _CODES,
            _GGUF,
            _LLAMA_CPP,
            "logits against a reference in PyTorch; transformers has no such class",
        ),
        (
            Published("1bitLLM/bitnet_b1_58-large"),
            Published("1bitLLM/bitnet_b1_58-xl"),
            Published(
                "1bitLLM/bitnet_b1_58-3B",
                "af89e318d78a70802061246bf037199d2fb97020",
                "llama.cpp's converter",
            ),
        ),
    ),
    Verified(
        "llama",
        ("llama",),
        (_CODES, _GGUF, "logits against transformers' LlamaForCausalLM with BitLinear"),
        (
            Published("tiiuae/Falcon3-1B-Instruct-1.58bit"),
            Published("tiiuae/Falcon3-3B-Instruct-1.58bit"),
            Published("tiiuae/Falcon3-7B-Instruct-1.58bit"),
            Published("tiiuae/Falcon3-10B-Instruct-1.58bit"),
            Published("tiiuae/Falcon-E-1B-Instruct"),
            Published("tiiuae/Falcon-E-3B-Instruct"),
        ),
    ),
    Verified("gemma3", (), _DENSE, (Published("google/gemma-3-1b-it"),)),
    Verified("qwen3", (), _DENSE, (Published("Qwen/Qwen3-0.6B"),)),
)
