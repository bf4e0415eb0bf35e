"""How a scheduled tensor program becomes host code that launches device kernels.

Our kernels bring their launches, their memories and their barriers, so the passes that look for
them in TVM's own list have nothing to find; those that stay lower what the rules emit.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.s_tir import transform as s_tir
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import transform as tirx
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from ..targets.opencl_source import preamble

# To load them tells TVM what builds for their targets.
from . import cuda, metal, rocm, spirv  # noqa: F401

NAME = "bitfabric.device"
"""The pipeline's name in TVM's registry."""


def _blocks() -> list[tvm.transform.Pass]:
    """Return the passes that turn blocks and their buffers into plain loops over flat buffers."""
    return [
        s_tir.CanonicalizeLoop(),
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.UnifyThreadBinding(),
        s_tir.LowerMatchBuffer(),
        s_tir.LowerOpaqueBlock(),
        tirx.FlattenBuffer(),
    ]


def loops() -> list[tvm.transform.Pass]:
    """Return the passes that shape what runs in a thread."""
    return [
        tirx.NarrowDataType(32),
        tirx.VectorizeLoop(True),
        tirx.UnrollLoop(),
        tirx.StmtSimplify(),
        tirx.RemoveNoOp(),
        s_tir.RewriteUnsafeSelect(),
    ]


def flattened(module: tvm.IRModule) -> tvm.IRModule:
    """Return scheduled kernels as plain loops in which every access is of one axis."""
    return tvm.transform.Sequential(_blocks())(module)


def _pipeline() -> tuple[tvm.transform.Pass, tvm.transform.Pass, tvm.transform.Pass]:
    """Return the lowering passes, and TVM's own finalisers for host and device functions.

    LLVM's code generator knows no pointers to bfloat16: host code hands them on as 16-bit integers.
    """
    functions = [
        tirx.VerifyMemory(),
        tirx.AnnotateEntryFunc(),
        tirx.SplitHostDevice(),
        tirx.MakePackedAPI(),
    ]
    passes = tvm.transform.Sequential([*_blocks(), *loops(), *functions])
    return passes, _finalize_host, finalize_device_passes


def _finalize_host() -> tvm.transform.Pass:
    return tvm.transform.Sequential([tirx.BF16StorageLegalize(), finalize_host_passes()])


def _finished(source: str, _target: tvm.target.Target) -> str:
    """Return a kernel's source with what TVM leaves out, and without what it repeats.

    Before each kernel it declares all of them, which for hundreds of kernels is most of the text.
    """
    lines = source.splitlines(keepends=True)
    kept = (line for line in lines if not line.startswith("__kernel") or "{" in line)
    return preamble(source) + "".join(kept)


register_tir_pipeline(NAME, _pipeline)
tvm_ffi.register_global_func("tvm_callback_opencl_postproc", _finished, override=True)
