"""OpenCL C that our kernels share: what they need beyond the language itself."""

from __future__ import annotations

DOT4 = """\
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
"""``int fabric_dot4(int a, int b, int c)``: `c` plus the four products of the signed bytes of `a`
and `b`, by the best instruction that the driver's compiler offers."""
