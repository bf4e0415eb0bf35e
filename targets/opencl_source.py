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

SUBGROUP = """\
#if defined(__NV_CL_C_VERSION)
#define FABRIC_REDUCE(name, type, operation) \\
  inline type __attribute__((overloadable)) name(type x) { \\
    for (int distance = 16; distance > 0; distance /= 2) { \\
      int y; \\
      asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" \\
                   : "=r"(y) : "r"(as_int(x)), "r"(distance)); \\
      x = operation; \\
    } \\
    return x; \\
  }
FABRIC_REDUCE(fabric_subgroup_add, float, x + as_float(y))
FABRIC_REDUCE(fabric_subgroup_add, int, x + y)
FABRIC_REDUCE(fabric_subgroup_max, float, fmax(x, as_float(y)))
FABRIC_REDUCE(fabric_subgroup_max, int, max(x, y))
inline int fabric_linear() {
  int row = get_local_id(1) + get_local_size(1) * get_local_id(2);
  return get_local_id(0) + get_local_size(0) * row;
}
#define fabric_subgroup_size() 32
#define fabric_subgroup_lane() (fabric_linear() % 32)
#define fabric_subgroup_id() (fabric_linear() / 32)
#define fabric_subgroup_count() \\
  ((int)(get_local_size(0) * get_local_size(1) * get_local_size(2) + 31) / 32)
#else
#pragma OPENCL EXTENSION cl_khr_subgroups : enable
#define fabric_subgroup_add(x) sub_group_reduce_add(x)
#define fabric_subgroup_max(x) sub_group_reduce_max(x)
#define fabric_subgroup_size() ((int)get_sub_group_size())
#define fabric_subgroup_lane() ((int)get_sub_group_local_id())
#define fabric_subgroup_id() ((int)get_sub_group_id())
#define fabric_subgroup_count() ((int)get_num_sub_groups())
#endif
"""
"""The functions ``fabric_subgroup_*`` by cl_khr_subgroups, or by the shuffles of NVIDIA's
processors, whose OpenCL lacks it: a warp is 32 neighbours of a work-group, and shuffles exchange
registers (PTX ISA, "shfl.sync"). The assembly is volatile so that it stays where all threads pass.
"""


def preamble(source: str) -> str:
    """Return what the functions that a kernel's source calls need before it."""
    return (DOT4 if "fabric_dot4" in source else "") + (
        SUBGROUP if "fabric_subgroup_" in source else ""
    )
