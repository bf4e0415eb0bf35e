"""`fabric models`: the families that can be compiled, and where to get a model."""

from __future__ import annotations

from .common import SEED_UNUSED, command
from .output import Output


@command(
    "models",
    examples=["fabric models", "fabric models --json"],
    seed_help=SEED_UNUSED,
)
def models_command(output: Output, seed: int | None) -> None:
    """List the model families: what was verified, and what to fetch.

    Each line with hf:// is a name that `fabric compile` takes; it is downloaded first, which needs
    the package huggingface_hub: pip install 'bitfabric[hub]'.
    """
    from ..models.catalog import CATALOG, PUBLISHED_WEIGHTS
    from ..models.families import FAMILIES

    rows = {family.name: family for family in FAMILIES}
    for entry in CATALOG:
        family = rows[entry.family]
        output.say(f"[bold]{entry.family}[/]  {family.architecture}; GGUF {', '.join(entry.gguf)}")
        for check in entry.checks:
            output.say(f"  verified: {check}")
        for model in entry.models:
            source = f"  [dim]commit named by {model.source}[/]" if model.source else ""
            output.say(f"  {model.name}{source}")
        output.say()
    output.say(PUBLISHED_WEIGHTS)
    output.result(
        {
            "families": [
                {
                    "name": entry.family,
                    "architecture": rows[entry.family].architecture,
                    "gguf": entry.gguf,
                    "verified": entry.checks,
                    "models": [
                        {
                            "fetch": model.name,
                            "repository": model.repository,
                            "revision": model.revision,
                            "revision_source": model.source,
                        }
                        for model in entry.models
                    ],
                }
                for entry in CATALOG
            ],
            "published_weights": PUBLISHED_WEIGHTS,
        }
    )
