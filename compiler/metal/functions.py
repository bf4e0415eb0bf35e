"""What our kernels call by name, in the Metal Shading Language.

The kernels name few functions beyond C's own: those of OpenCL C for what TIR has no word for, and
ours. Most have another name here; the text of the others goes before the kernels that call them.
Places of a thread in its SIMD group are no functions in MSL: `rewrite` computes them.
"""

from __future__ import annotations

NAMES = {
    # A constructor, which C++ would read as a cast of the last of several values.
    "(float2)": "float2",
    "(float4)": "float4",
    "(int2)": "int2",
    "(int4)": "int4",
    "as_char4": "as_type<char4>",
    "as_int": "as_type<int>",
    "as_float2": "as_type<float2>",
    "as_float4": "as_type<float4>",
    "fabric_subgroup_add": "simd_sum",
    "fabric_subgroup_max": "simd_max",
    "convert_char4_sat_rte": "fabric_char4_sat",
}
"""By the name in TIR, that in MSL."""
PRECISE = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "exp", "exp2", "log",
    "log10", "log2", "pow", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh",
})  # fmt: skip
"""Functions of which Metal has a fast and a precise kind; the fast cosine is off by 2^-13."""
LIBRARY = frozenset({
    "abs", "ceil", "clamp", "fabs", "floor", "fma", "fmax", "fmin", "fmod", "max", "min", "rint",
    "round", "select", "trunc",
})  # fmt: skip
"""Functions whose names and precision are C's."""

TEXTS = {
    "fabric_dot4": """\
static inline int fabric_dot4(int a, int b, int c) {
  const int4 p = int4(as_type<char4>(a)) * int4(as_type<char4>(b));
  return c + ((p.x + p.y) + (p.z + p.w));
}
""",
    "fabric_char4_sat": """\
static inline char4 fabric_char4_sat(float4 x) {
  return char4(clamp(rint(x), -128.0f, 127.0f));
}
""",
    "fabric_load_matrix": """\
template <typename V>
static inline void fabric_load_matrix(thread simdgroup_half8x8* fragments, int index,
                                      threadgroup V* place, int stride, bool transposed) {
  simdgroup_load(fragments[index], reinterpret_cast<threadgroup half*>(place), ulong(stride),
                 ulong2(0, 0), transposed);
}
""",
    "fabric_store_matrix": """\
template <typename V>
static inline void fabric_store_matrix(thread simdgroup_float8x8* fragments, int index,
                                       threadgroup V* place, int stride) {
  simdgroup_store(fragments[index], reinterpret_cast<threadgroup float*>(place), ulong(stride));
}
""",
}
"""By the name in MSL, the text of the functions that it has not."""


def known(name: str) -> str:
    """Return the name in MSL of a function that TIR names; "" where there is none."""
    if name in NAMES:
        return NAMES[name]
    if name in PRECISE:
        return f"precise::{name}"
    return name if name in LIBRARY or name in TEXTS else ""


def preamble(source: str) -> str:
    """Return the text of the functions that a kernel's source calls."""
    return "".join(text for name, text in TEXTS.items() if f"{name}(" in source)
