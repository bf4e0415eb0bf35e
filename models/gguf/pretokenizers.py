"""How a text is cut into words before merging, by the name in ``tokenizer.ggml.pre``.

The regular expressions are those of the tokenizers themselves; they come from the published
tokenizer.json files and are the same in every program that runs these models.
"""

from __future__ import annotations

from typing import Any

# Of GPT-2; the `tokenizers` library has it built into its byte-level step.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

Step = dict[str, Any]


def _byte_level(use_regex: bool) -> Step:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> Step:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _sequence(*steps: Step) -> Step:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT2 = _byte_level(True)
_LLAMA3 = _sequence(_split(LLAMA3), _byte_level(False))
_QWEN2 = _sequence(_split(QWEN2), _byte_level(False))
_SINGLE_DIGITS = _sequence(_DIGITS, _GPT2)
_DEFAULT = _sequence(
    _split(r"[\p{P}\$\+<=>\^~\|]+"),
    _split(GPT2),
    _split(r"\p{N}+"),
    _split(r"[0-9][0-9][0-9]"),
    _byte_level(False),
)

PRE_TOKENIZERS: dict[str, Step] = {
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon_e": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "qwen2": _QWEN2,
    # "refact" stands first: of the names for this cut it is the one that every version knows.
    "refact": _SINGLE_DIGITS,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "default": _DEFAULT,
}
"""The pre-tokenizer of tokenizer.json for each name; the first name of a cut is the one written."""

WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-h1"})
"""Names whose words that are tokens are never merged, and that begin a text with a token."""


def name_of(pre_tokenizer: Any) -> str | None:
    """Find the name of a tokenizer.json's pre-tokenizer; None where it has none."""
    wanted = _canonical(pre_tokenizer)
    for name, step in PRE_TOKENIZERS.items():
        if wanted == _canonical(step):
            return name
    return None


def _canonical(step: Any) -> list[tuple[str, ...]]:
    """Reduce a pre-tokenizer to what decides where it cuts."""
    if not isinstance(step, dict):
        return [("unknown",)]
    kind = step.get("type")
    if kind == "Sequence":
        return [cut for part in step.get("pretokenizers", []) for cut in _canonical(part)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        # The regular expression of GPT-2 may also stand before it, as a step of its own.
        return [("regex", GPT2)] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [("digits",)]
    if kind == "Split" and not step.get("invert"):
        pattern = step.get("pattern", {}).get("Regex")
        behaviour = str(step.get("behavior", "")).lower()
        cuts = pattern is not None and behaviour in ("isolated", "removed")
        # "Removed" with a pattern that matches everything is how some files write "Isolated".
        return [("regex", pattern)] if cuts and behaviour == "isolated" else [("unknown",)]
    return [("unknown",)]
