"""LoRA training, prefill and decode of a dense model in PyTorch, transformers and PEFT.

Run as ``python bench/baselines/torch_baseline.py --model 1B --batch 8 --context 512 --compile``, or
by ``fabric bench … --against torch``. The model is a Llama of the same shape with random weights,
bfloat16 on a GPU and float32 on the processor; every linear layer gets an adapter. It prints a JSON
object for a round, and another for each line that it reads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUND_SECONDS = 1.0
WARM_UP = 3
SHAPES = {
    "125M": (768, 3072, 11, 12),
    "350M": (1024, 3072, 24, 16),
    "1B": (2048, 3584, 24, 32),
    "2.7B": (3072, 7680, 24, 32),
}
"""Hidden and intermediate size, layers and heads of published shapes; 32,002 words."""
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parsed() -> argparse.Namespace:
    """Read the command line; what a later version of `fabric bench` may add is left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="1B")
    parser.add_argument("--config", type=json.loads, help="the shape, as fabric's manifest has it")
    parser.add_argument("--work", choices=("train", "prefill", "decode"), default="train")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, help="of a row, of a prompt, or to be written")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, …")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument(
        "--narrow-adapters", action="store_true", help="adapters in the model's dtype, not float32"
    )
    arguments, _ = parser.parse_known_args()
    if arguments.tokens is None:
        arguments.tokens = 48 if arguments.work == "decode" else arguments.context
    return arguments


def shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what LlamaConfig takes."""
    if arguments.config is None:
        hidden, ffn, layers, heads = SHAPES[arguments.model.removeprefix("random:")]
        found = {"num_key_value_heads": heads, "vocab_size": 32002, "tie_word_embeddings": True}
    else:
        given = arguments.config
        hidden, ffn = given["hidden_size"], given["intermediate_size"]
        layers, heads = given["num_layers"], given["num_heads"]
        found = {
            "num_key_value_heads": given["num_kv_heads"],
            "head_dim": given["head_dim"],
            "vocab_size": given["vocab_size"],
            "tie_word_embeddings": given["tied_head"],
        }
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max(2048, arguments.context + arguments.tokens + 1),
        **found,
    }


class Baseline:
    """The model and one kind of work on it.

    Parameters
    ----------
    arguments : argparse.Namespace
        The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        self._torch, self._arguments = torch, arguments
        name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._device = torch.device(name)
        dtype = arguments.dtype or ("float32" if name == "cpu" else "bfloat16")
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))
        with self._device:
            self._model: Any = LlamaForCausalLM(LlamaConfig(**shape(arguments)))
            rows, length = arguments.batch, arguments.context
            if arguments.work == "prefill":
                length = arguments.tokens
            words = self._model.config.vocab_size
            self._tokens = torch.randint(words, (rows, length + 1))
        torch.set_default_dtype(torch.float32)
        work = {"train": self._training, "prefill": self._prefill, "decode": self._decode}
        self._run = work[arguments.work]()
        for _ in range(WARM_UP):
            self._run()

    def _timed(self, work: Callable[[], Any]) -> float:
        """Return the seconds that something takes, waiting for the device."""
        self._wait()
        begin = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def _training(self) -> Callable[[], float]:
        """Return a step: loss, gradients of the adapters, AdamW."""
        from peft import LoraConfig, get_peft_model

        rank = self._arguments.lora_rank
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=MODULES)
        # PEFT keeps the adapters of a 16-bit model in float32 unless it is told otherwise.
        widened = not self._arguments.narrow_adapters
        model = get_peft_model(self._model, lora, autocast_adapter_dtype=widened).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = self._torch.optim.AdamW(parameters, lr=1e-3, fused=self._device.type == "cuda")
        called = self._torch.compile(model) if self._arguments.compile else model
        tokens = self._tokens[:, 1:].contiguous()

        def step() -> None:
            # The loss is within what is compiled; the model itself shifts the labels.
            called(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            self._torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return lambda: self._timed(step)

    def _prefill(self) -> Callable[[], float]:
        """Return the reading of a prompt, which fills a cache and gives the last logits."""
        model, tokens = self._model.eval(), self._tokens[:, 1:].contiguous()
        called = self._torch.compile(model) if self._arguments.compile else model

        def read() -> None:
            with self._torch.inference_mode():
                called(input_ids=tokens, use_cache=True, logits_to_keep=1)

        return lambda: self._timed(read)

    def _decode(self) -> Callable[[], float]:
        """Return the greedy writing of tokens after a prompt, which is timed apart."""
        model, tokens = self._model.eval(), self._tokens[:, 1:].contiguous()
        mask = self._torch.ones_like(tokens)
        cache = "static" if self._arguments.compile else None

        def write(count: int) -> float:
            def generate() -> None:
                with self._torch.inference_mode():
                    model.generate(
                        tokens, attention_mask=mask, min_new_tokens=count, max_new_tokens=count,
                        do_sample=False, pad_token_id=0, cache_implementation=cache,
                    )  # fmt: skip

            return self._timed(generate)

        return lambda: write(1 + self._arguments.tokens) - write(1)

    def round(self) -> dict[str, float]:
        """Measure for a while; tokens a second of the median repetition, and peak memory."""
        count = self._arguments.batch * (
            self._arguments.context if self._arguments.work == "train" else self._arguments.tokens
        )
        seconds: list[float] = []
        end = time.perf_counter() + ROUND_SECONDS
        while not seconds or time.perf_counter() < end:
            seconds.append(self._run())
        return {
            "tokens_per_s": count / statistics.median(seconds),
            "tokens": count * len(seconds),
            "peak_memory_mib": self._peak_memory_mib(),
        }

    def _peak_memory_mib(self) -> float:
        """Return the most memory of the device that tensors took, or of the process."""
        if self._device.type == "cuda":
            return self._torch.cuda.max_memory_allocated() / 2**20
        status = Path("/proc/self/status")
        if status.is_file():
            lines = (line.split() for line in status.read_text().splitlines())
            return next(int(words[1]) / 1024 for words in lines if words[0] == "VmHWM:")
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure a round, and another for each line of standard input."""
    arguments = parsed()
    try:
        baseline = Baseline(arguments)
    except ImportError as error:
        remedy = "Install it: pip install torch transformers peft accelerate"
        print(json.dumps({"error": f"{error}.", "remedy": remedy}), flush=True)
        sys.exit(2)
    print(json.dumps(baseline.round()), flush=True)
    for _ in sys.stdin:
        print(json.dumps(baseline.round()), flush=True)


if __name__ == "__main__":
    main()
