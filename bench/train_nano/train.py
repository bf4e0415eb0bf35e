"""Train nano from its token files: one GPU, some minutes.

    python bench/train_nano/train.py --tokens .carry-nano --out OUT --minutes 7

writes OUT/config.json and OUT/model.safetensors (packed, ready to ship), OUT/log.jsonl and
OUT/result.json. ``--steps`` in place of ``--minutes`` repeats a run's schedule exactly.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Rows, read_tokens, windows
from export import round_to_shipped, write_folder
from model import Nano, NanoConfig, causal_blocks
from torch import Tensor

# Steps that are not timed (compilation) and steps whose pace sets the length of the run.
_UNTIMED, _TIMED = 20, 40


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=Path, required=True, help="folder of the token files")
    parser.add_argument("--out", type=Path, required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="as many steps as fit this time")
    length.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=256, help="rows of a step")
    parser.add_argument("--context", type=int, default=512, help="tokens of a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="in the first half")
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--eval-every", type=int, default=500, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a rehearsal's shape: two layers")
    return parser.parse_args()


def learning_rate(step: int, steps: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, steps - options.warmup))
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: Nano, device: str) -> torch.optim.AdamW:
    """AdamW with decay on the matrices alone; its strength is set while training."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [
        {"params": matrices, "decays": True},
        {"params": others, "decays": False, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")


@torch.no_grad()
def measure(
    model: Nano, stream: np.ndarray, context: int, device: str, batches: int | None = None
) -> dict[str, float]:
    """Mean loss in nats a token, in float32 with quantised weights; `batches` of 32 at most."""
    total, count = 0.0, 0
    for number, batch in enumerate(windows(stream, context)):
        if number == batches:
            break
        tokens, labels, documents = (part.to(device) for part in batch)
        total += model.losses(tokens, labels, documents).double().sum().item()
        count += int((labels != -100).sum())
    return {"loss": total / count, "perplexity": math.exp(total / count), "tokens": count}


def unigram(train: np.ndarray, stream: np.ndarray, vocabulary: int) -> float:
    """Mean nats a token of `stream` under the training stream's token frequencies (plus one)."""
    counts = np.bincount(train[train != 1], minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[stream[stream != 1]].mean())


class Trainer:
    """One run: model, optimizer, schedule and log."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        config = NanoConfig()
        if options.tiny:
            config = replace(config, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
            config = replace(config, num_attention_heads=2, num_key_value_heads=1)
        self.model = Nano(config).to(options.device)
        self.optimizer = make_optimizer(self.model, options.device)
        self.blocks = None
        self.losses: Any = self.model.losses
        if options.device == "cuda":
            torch.set_float32_matmul_precision("highest")
            self.blocks = causal_blocks(options.context, "cuda")
            self.losses = torch.compile(self.model.losses, dynamic=False)
        options.out.mkdir(parents=True, exist_ok=True)
        self.log_file = (options.out / "log.jsonl").open("w", buffering=1)

    def log(self, **values: object) -> None:
        """Print one line and keep it."""
        line = json.dumps(values)
        print(line, flush=True)
        self.log_file.write(line + "\n")

    def step(self, batch: Iterable[Tensor], step: int, steps: int) -> tuple[Tensor, Tensor]:
        """One update; return the mean loss and the gradient's norm, still on the device."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, options)
            if group["decays"]:
                # Decay late in training pulls master weights over the rounding threshold.
                group["weight_decay"] = options.weight_decay if step < steps // 2 else 0.0
        tokens, labels, documents = batch
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        losses = self.losses(tokens, labels, documents, dtype, self.blocks)
        loss = losses.sum() / (labels != -100).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    def planned_steps(self, started: float) -> int:
        """Steps that fit into --minutes at the pace just measured."""
        pace = (time.perf_counter() - started) / _TIMED
        return _UNTIMED + _TIMED + max(1, int(self.options.minutes * 60 / pace))

    def run(self, parts: dict[str, np.ndarray]) -> dict[str, object]:
        """Train to the end; return the numbers of the run."""
        options = self.options
        rows = Rows(parts["train"], options.context, options.batch, options.device, options.seed)
        steps = options.steps or 10**9
        begun = started = time.perf_counter()
        for step, batch in enumerate(rows):
            if step in (_UNTIMED, _UNTIMED + _TIMED) and not options.steps:
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if step > _UNTIMED:
                    steps = self.planned_steps(started)
                    self.log(planned_steps=steps)
                started = time.perf_counter()
            loss, norm = self.step(batch, step, steps)
            if step % 100 == 0:
                seconds = time.perf_counter() - begun
                self.log(
                    step=step,
                    loss=round(loss.item(), 4),
                    gradient_norm=round(norm.item(), 3),
                    epoch=rows.epochs,
                    seconds=round(seconds, 1),
                )
            last = step + 1 == steps
            if step % options.eval_every == options.eval_every - 1 or last:
                scores = {
                    name: measure(self.model, parts[name], options.context, options.device, 4)
                    for name in ("heldout", "validation")
                }
                self.log(step=step, **{k: round(v["loss"], 4) for k, v in scores.items()})
            if last:
                break
        seconds = time.perf_counter() - begun
        seen = steps * options.batch * options.context
        return {"steps": steps, "seconds": seconds, "tokens": seen, "epochs": rows.epochs}


def main() -> None:
    """Train, round to the shipped types, write the folder, measure."""
    options = arguments()
    parts = {
        name: read_tokens(options.tokens / f"{name}.u16.xz")
        for name in ("train", "heldout", "validation")
    }
    sizes = json.loads((options.tokens / "sizes.json").read_text())
    trainer = Trainer(options)
    result = trainer.run(parts)
    model = trainer.model
    round_to_shipped(model)
    write_folder(model, options.out)
    for name in ("validation", "heldout"):
        scores = measure(model, parts[name], options.context, options.device)
        bits = scores["loss"] * scores["tokens"] / math.log(2) / sizes[name]["bytes"]
        baseline = unigram(parts["train"], parts[name], model.config.vocab_size)
        result[name] = {
            **scores,
            "bits_per_byte": bits,
            "unigram_loss": baseline,
            "unigram_perplexity": math.exp(baseline),
        }
    result["parameters"] = sum(p.numel() for p in model.parameters())
    result["config"] = asdict(model.config)
    result["options"] = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    result["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result["torch"] = torch.__version__
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
