"""How a scheduled tensor program becomes what LLVM takes: the passes that a processor needs.

TVM's own list serves GPUs too, and looks for regions and common subexpressions that our kernels,
whose loops and registers are laid out already, do not have: with it the same code takes two and a
half times as long to compile.
"""

from __future__ import annotations

import tvm
from tvm.s_tir import transform as s_tir
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import transform as tirx
from tvm.tirx.compilation_pipeline import register_tir_pipeline

NAME = "bitfabric.host"
"""The pipeline's name in TVM's registry."""


def _pipeline() -> tuple[tvm.transform.Pass, tvm.transform.Pass, tvm.transform.Pass]:
    """Return the lowering passes, and TVM's own finalisers for host and device functions."""
    blocks = [
        s_tir.CanonicalizeLoop(),
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.LowerMatchBuffer(),
        s_tir.LowerOpaqueBlock(),
    ]
    loops = [
        tirx.FlattenBuffer(),
        tirx.NarrowDataType(32),
        tirx.VectorizeLoop(True),
        tirx.StorageRewrite(),
        tirx.UnrollLoop(),
        tirx.StmtSimplify(),
        tirx.RemoveNoOp(),
        s_tir.RewriteUnsafeSelect(),
    ]
    functions = [
        tirx.VerifyMemory(),
        tirx.AnnotateEntryFunc(),
        tirx.SplitHostDevice(),
        tirx.MakePackedAPI(),
    ]
    passes = tvm.transform.Sequential([*blocks, *loops, *functions])
    return passes, finalize_host_passes, finalize_device_passes


register_tir_pipeline(NAME, _pipeline)
