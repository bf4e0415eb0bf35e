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

NAME = "bitfabric.device"
"""The pipeline's name in TVM's registry."""

OPENCL_PREAMBLE = """\
#if defined(__opencl_c_integer_dot_product_input_4x8bit_packed)
#define fabric_dot4(a, b, c) (dot_4x8packed_ss_int(as_uint(a), as_uint(b)) + (c))
#elif defined(cl_arm_integer_dot_product_accumulate_int8)
#pragma OPENCL EXTENSION cl_arm_integer_dot_product_accumulate_int8 : enable
#define fabric_dot4(a, b, c) arm_dot_acc(as_char4(a), as_char4(b), (c))
#elif defined(__NV_CL_C_VERSION)
inline int fabric_dot4(int a, int b, int c) {
  int d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
#else
inline int fabric_dot4(int a, int b, int c) {
  int4 p = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
  return c + ((p.x + p.y) + (p.z + p.w));
}
#endif
"""
"""Four 8-bit products, as the best instruction that the driver's compiler offers."""


def _pipeline() -> tuple[tvm.transform.Pass, tvm.transform.Pass, tvm.transform.Pass]:
    """Return the lowering passes, and TVM's own finalisers for host and device functions."""
    blocks = [
        s_tir.CanonicalizeLoop(),
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.UnifyThreadBinding(),
        s_tir.LowerMatchBuffer(),
        s_tir.LowerOpaqueBlock(),
    ]
    loops = [
        tirx.FlattenBuffer(),
        tirx.NarrowDataType(32),
        tirx.VectorizeLoop(True),
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


def _with_preamble(source: str, _target: tvm.target.Target) -> str:
    return OPENCL_PREAMBLE + source if "fabric_dot4" in source else source


register_tir_pipeline(NAME, _pipeline)
tvm_ffi.register_global_func("tvm_callback_opencl_postproc", _with_preamble, override=True)
