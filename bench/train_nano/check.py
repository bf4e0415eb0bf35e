"""Check a nano folder against transformers: same loss as training measured, and a greedy sample.

    python bench/train_nano/check.py --folder models/nano --tokens .carry-nano --result result.json

transformers' BitNetForCausalLM is the independent reference; it runs here on the CPU in float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from data import read_tokens, windows
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "The patient was treated with",
    "Q: Does aspirin reduce the risk of heart attack?\nA:",
    "The function returns",
    "Cell division. The process by which",
)


@torch.no_grad()
def reference_loss(model: torch.nn.Module, tokens_file: Path, context: int, limit: int) -> float:
    """Mean nats a token over the first `limit` batches of 32 windows."""
    total, count = 0.0, 0
    for number, (tokens, labels, _) in enumerate(windows(read_tokens(tokens_file), context)):
        if number == limit:
            break
        logits = model(tokens).logits.flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="none")
        total += losses.double().sum().item()
        count += int((labels != -100).sum())
    return total / count


def main() -> None:
    """Print both losses and the samples; exit 1 when the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True, help="result.json of train.py")
    options = parser.parse_args()
    # Quantised models refuse their own float(); the plain module's widens all of float16 exactly.
    model = torch.nn.Module.float(AutoModelForCausalLM.from_pretrained(options.folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    trained = json.loads(options.result.read_text())
    context = trained["options"]["context"]
    loss = reference_loss(model, options.tokens / "validation.u16.xz", context, 2)
    print(f"transformers {loss:.6f}, training {trained['validation']['loss']:.6f} nats a token")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        answer = model.generate(ids, max_new_tokens=48, do_sample=False)[0]
        print(json.dumps(tokenizer.decode(answer, skip_special_tokens=True)))
    if abs(loss - trained["validation"]["loss"]) > 1e-3:
        raise SystemExit("the losses differ")


if __name__ == "__main__":
    main()
