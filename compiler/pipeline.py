"""From a model's configuration to a scheduled, lowered module: the phases in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import tvm
from tvm import relax

from ..models.config import ModelConfig
from ..models.graph import (
    TrainingShape,
    add_inference,
    add_layer_prefill,
    add_layer_steps,
    add_row_embedding,
    add_steps,
    training_functions,
)
from ..models.lora import adapter_layout
from ..schedules import KERNEL, schedule
from ..schedules.decisions import deciding
from ..targets import FabricError, Target, host_options
from .cuda import find_toolkit
from .device_code import NAME as DEVICE_CODE
from .differentiate import differentiate, drop_gradient_marks
from .host_code import NAME as HOST_CODE
from .options import CompileOptions
from .recompute import keep_activations, way_to_recompute
from .rocm import check_linker, unheard
from .shape_functions import in_order
from .tuning.applied import Tuning
from .windows import check_adapter, split

ENTRIES = (
    "train_step",
    "evaluate_step",
    "gradient_squares",
    "update",
    "rope",
    "prefill",
    "decode",
    "rope_cache",
    "grow_cache",
    "embed",
    "embed_rows",
    "layer_forward",
    "layer_forward_kept",
    "layer_vjp",
    "head_loss",
    "head_loss_vjp",
    "layer_evaluate",
    "layer_accumulate",
    "layer_squares",
    "layer_update",
    "prefill_embed",
    "prefill_layer",
    "prefill_head",
)
"""Functions that a runtime may call."""


def build_graph(
    config: ModelConfig, options: CompileOptions, target: Target | None = None
) -> tvm.IRModule:
    """Return the whole module of a model: training functions, their adjoints, and inference.

    Parameters
    ----------
    config : ModelConfig
        The model.
    options : CompileOptions
        Its sizes and adapters.
    target : Target, optional
        On a graphics processor norms and residuals belong to the projections in training, too: its
        memory is the limit there. A processor's caches hold what passes between two kernels.
    """
    fused = target is not None and target.family == "gpu"
    shape = TrainingShape(options.micro_batch, options.context)
    formats = options.formats
    builder = relax.BlockBuilder()
    training_functions(builder, config, shape, options.lora, formats, fused)
    factors = len(adapter_layout(config, options.lora).factors)
    module = differentiate(builder.get(), 1 + factors, fused)
    way = "all" if target is None else way_to_recompute(config, target, options)
    builder = relax.BlockBuilder(keep_activations(module, way))
    add_steps(builder, config, shape, options.lora, formats)
    add_layer_steps(builder, config, options.lora, formats)
    add_row_embedding(builder, config, shape.tokens, formats.head)
    add_inference(builder, config, options.lora, formats)
    add_layer_prefill(builder, config, options.lora, formats)
    module = drop_gradient_marks(builder.get())
    return relax.transform.DeadCodeElimination(_entries(module))(module)


def _entries(module: tvm.IRModule) -> list[str]:
    """Return the entries that a module has: not every one has a layer without dropout."""
    names = {name.name_hint for name in module.get_global_vars()}
    return [name for name in ENTRIES if name in names]


def fuse(module: tvm.IRModule) -> tvm.IRModule:
    """Lower Relax operators to tensor programs and fuse the elementwise ones."""
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(_entries(module)),
        # Reads the tensor programs, so it must come before a rule rewrites them.
        relax.transform.RewriteDataflowReshape(),
    ]
    return tvm.transform.Sequential(passes)(module)


def apply_schedules(
    module: tvm.IRModule, target: Target, tuning: Tuning | None = None
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Lay every kernel onto the target, by the decisions of its records where it has any.

    Returns
    -------
    tuple
        The module, and for each PrimFunc ``kernel <- rule`` as the manifest lists them.
    """
    scheduled = tvm.IRModule(dict(module.functions.items()), attrs=module.attrs)
    chosen = {}
    for name, function in module.functions.items():
        if isinstance(function, tvm.tirx.PrimFunc):
            with deciding(tuning.decisions(function, name.name_hint) if tuning else {}):
                rule, laid_out = schedule(function, target)
            scheduled.update_func(name, laid_out)
            attributes = function.attrs or {}
            kernel = str(attributes[KERNEL]) if KERNEL in attributes else "elementwise"
            chosen[name.name_hint] = f"{kernel} <- {rule.rsplit('.', 1)[-1]}"
    return scheduled, chosen


def lower(module: tvm.IRModule) -> tvm.IRModule:
    """Plan memory and lower the Relax functions to what the virtual machine executes."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return in_order(tvm.transform.Sequential(passes)(module))


def build(
    config: ModelConfig,
    target: Target,
    options: CompileOptions,
    progress: Callable[[str, float], None],
    tuning: Tuning | None = None,
) -> tuple[relax.VMExecutable, dict[str, str], tvm.IRModule]:
    """Run all phases.

    Returns
    -------
    tuple
        The executable, the rule of each kernel, and the lowered module (for its memory plan).
    """
    dump = _Dump(options.debug_dump)
    progress("graph", 0.0)
    if target.device == "cuda":
        find_toolkit()
    if target.device == "rocm":
        check_linker()
    check_adapter(adapter_layout(config, options.lora), target)
    _check_cache(config, options)
    module = dump("1-graph", build_graph(config, options, target))
    progress("fuse", 0.1)
    module = dump("2-fused", fuse(module))
    progress("schedule", 0.2)
    module, kernels = apply_schedules(module, target, tuning)
    module = dump("3-scheduled", split(module, target))
    progress("lower", 0.4)
    lowered = dump("4-lowered", lower(module))
    progress("generate code", 0.5)
    executable = tvm.compile(
        lowered,
        target=tvm_target(target),
        relax_pipeline=_as_it_is(),
        tir_pipeline=HOST_CODE if target.family == "cpu" else DEVICE_CODE,
    )
    return executable, kernels, lowered


def _check_cache(config: ModelConfig, options: CompileOptions) -> None:
    """Refuse heads of which a vector is no whole words of the cache."""
    if options.kv_cache != "f32" and config.head_dim % 8:
        raise FabricError(
            f"A cache of {options.kv_cache} is for heads of whole eights; this model's heads have "
            f"{config.head_dim} elements.",
            "Compile with --kv-cache f32.",
        )


def tvm_target(target: Target) -> tvm.target.Target:
    """Return a target, with its host where it is a device, as TVM takes it."""
    if target.family == "cpu":
        return tvm.target.Target(dict(target.options))
    with unheard() if target.device == "rocm" else nullcontext():
        return tvm.target.Target(dict(target.options), host=host_options(target))


def _as_it_is() -> tvm.transform.Pass:
    """The Relax pipeline has run already, phase by phase."""
    return tvm.transform.Sequential([])


class _Dump:
    """Writes the IR of a phase to a folder, where one was asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __call__(self, phase: str, module: tvm.IRModule) -> tvm.IRModule:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{phase}.py").write_text(module.script(), encoding="utf-8")
        return module
