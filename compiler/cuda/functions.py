"""What our kernels call by name, as device functions in CUDA C++.

The kernels name few functions beyond C's own: those of OpenCL C for what TIR has no word for, and
ours. TVM's generator would take a function of vectors apart, a call for each element; here every
call becomes that of a function below, whose text goes along with the kernels that need it.

Small products of matrices are ``nvcuda::wmma``: the fragments' memory is of vectors there, so that
it is handed over by functions that take it as the bytes of the elements.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.backend.cuda.codegen.registry import register_codegen
from tvm.backend.cuda.op import cuda_func_call

from .copies import copy_function
from .warpgroup import INLINE, warpgroup_function

_BUTTERFLY = """\
{inline} {type} fabric_subgroup_{name}({type} x) {{
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {{
    {type} y = __shfl_xor_sync(0xffffffffu, x, distance);
    x = {operation};
  }}
  return x;
}}
"""
_QUAD = """\
{inline} {type} fabric_quad_{name}({type} x) {{
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {{
    {type} y = __shfl_xor_sync(0xffffffffu, x, distance);
    x = {operation};
  }}
  return x;
}}
"""
# PTX ISA, "Matrix multiply-accumulate operation using mma instruction": which thread has what.
_MULTIPLY = """\
{inline} float4 fabric_fragment_multiply(float4 sums, int4 a, int b, int c) {{
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(sums.x), "+f"(sums.y), "+f"(sums.z), "+f"(sums.w)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b), "r"(c));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5}}, {{%6}}, {{%0, %1, %2, %3}};"
      : "+f"(sums.x), "+f"(sums.y), "+f"(sums.z), "+f"(sums.w) : "r"(a.x), "r"(a.y), "r"(b));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5}}, {{%6}}, {{%0, %1, %2, %3}};"
      : "+f"(sums.x), "+f"(sums.y), "+f"(sums.z), "+f"(sums.w) : "r"(a.z), "r"(a.w), "r"(c));
#endif
  return sums;
}}
"""
_FRAGMENT = """\
template <typename V>
{inline} int4 fabric_fragment_{name}(const V* place) {{
  int4 found;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
      : "r"((unsigned)__cvta_generic_to_shared(place)) : "memory");
  return found;
}}
"""
_TO_HALVES = """\
{inline} int {name}(float x, float y) {{
  int pair;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn{bounded}.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
#else{bounds}
  asm("{{.reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {{a, b}};}}"
      : "=r"(pair) : "f"(x), "f"(y));
#endif
  return pair;
}}
"""
_BOUNDS = """
  x = fminf(fmaxf(x, -65504.0f), 65504.0f);
  y = fminf(fmaxf(y, -65504.0f), 65504.0f);"""
_REST = """\
{inline} int {name}(float x, float y, int pair) {{
  float a, b;
  asm("{{.reg .b16 a, b; mov.b32 {{a, b}}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}}"
      : "=f"(a), "=f"(b) : "r"(pair));
  return {rest}(x - a, y - b);
}}
"""
_LINEAR = "(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))"


def _function(result: str, signature: str, value: str) -> str:
    return f"{INLINE} {result} {signature} {{ return {value}; }}\n"


def _to_halves(name: str, bounded: bool) -> str:
    """Return the function of two 16-bit floats, which may end at the largest number they have."""
    form, bounds = (".satfinite", _BOUNDS) if bounded else ("", "")
    return _TO_HALVES.format(inline=INLINE, name=name, bounded=form, bounds=bounds)


def _rest(name: str, rest: str, bounded: bool) -> str:
    """Return the function of what two 16-bit floats leave, after the one that it calls."""
    return _to_halves(rest, bounded) + _REST.format(inline=INLINE, name=name, rest=rest)


def _reduction(name: str, operations: dict[str, str]) -> str:
    """Return the functions that combine a value of each thread of a warp, in all of them."""
    return "".join(
        _BUTTERFLY.format(inline=INLINE, type=dtype, name=name, operation=operation)
        for dtype, operation in operations.items()
    )


FUNCTIONS = {
    "(float4)": (
        "fabric_float4",
        _function("float4", "fabric_float4(float a, float b, float c, float d)",
                  "make_float4(a, b, c, d)"),
    ),
    "(int2)": ("fabric_int2", _function("int2", "fabric_int2(int a, int b)", "make_int2(a, b)")),
    "(float2)": (
        "fabric_float2",
        _function("float2", "fabric_float2(float a, float b)", "make_float2(a, b)"),
    ),
    "(int4)": (
        "fabric_int4",
        _function("int4", "fabric_int4(int a, int b, int c, int d)", "make_int4(a, b, c, d)"),
    ),
    # TVM's generator keeps four bytes in an int, the first lowest.
    "as_char4": ("fabric_as_char4", _function("int", "fabric_as_char4(int x)", "x")),
    "as_int": ("fabric_as_int", _function("int", "fabric_as_int(int x)", "x")),
    "as_float2": (
        "fabric_as_float2",
        _function("float2", "fabric_as_float2(int2 x)",
                  "make_float2(__int_as_float(x.x), __int_as_float(x.y))"),
    ),
    "as_float4": (
        "fabric_as_float4",
        _function("float4", "fabric_as_float4(int4 x)",
                  "make_float4(__int_as_float(x.x), __int_as_float(x.y), "
                  "__int_as_float(x.z), __int_as_float(x.w))"),
    ),
    "convert_char4_sat_rte": (
        "fabric_char4_sat",
        f"{INLINE} int fabric_char_sat(float x) {{\n"
        "  return __float2int_rn(fminf(fmaxf(x, -128.0f), 127.0f)) & 255;\n}\n"
        + _function("int", "fabric_char4_sat(float4 x)",
                    "fabric_char_sat(x.x) | fabric_char_sat(x.y) << 8 | "
                    "fabric_char_sat(x.z) << 16 | fabric_char_sat(x.w) << 24"),
    ),
    "fabric_dot4": (
        "fabric_dot4",
        _function("int", "fabric_dot4(int a, int b, int c)", "__dp4a(a, b, c)"),
    ),
    "fabric_bytes": (
        "fabric_bytes",
        _function("int", "fabric_bytes(int low, int high, int selector)",
                  "__byte_perm(low, high, selector)"),
    ),
    "fma": (
        "fabric_fma", _function("float", "fabric_fma(float a, float b, float c)", "fmaf(a, b, c)")
    ),
    "fabric_subgroup_add": (
        "fabric_subgroup_add", _reduction("add", {"float": "x + y", "int": "x + y"})
    ),
    "fabric_subgroup_max": (
        "fabric_subgroup_max", _reduction("max", {"float": "fmaxf(x, y)", "int": "max(x, y)"})
    ),
    "fabric_subgroup_size": (
        "fabric_subgroup_size", _function("int", "fabric_subgroup_size()", "32")
    ),
    "fabric_subgroup_lane": (
        "fabric_subgroup_lane", _function("int", "fabric_subgroup_lane()", f"{_LINEAR} & 31")
    ),
    "fabric_subgroup_id": (
        "fabric_subgroup_id", _function("int", "fabric_subgroup_id()", f"{_LINEAR} >> 5")
    ),
    "fabric_subgroup_count": (
        "fabric_subgroup_count",
        _function("int", "fabric_subgroup_count()",
                  "(blockDim.x * blockDim.y * blockDim.z + 31) >> 5"),
    ),
    "fabric_quad_add": (
        "fabric_quad_add",
        _QUAD.format(inline=INLINE, type="float", name="add", operation="x + y"),
    ),
    "fabric_quad_max": (
        "fabric_quad_max",
        _QUAD.format(inline=INLINE, type="float", name="max", operation="fmaxf(x, y)"),
    ),
    "fabric_fragment_multiply": (
        "fabric_fragment_multiply", _MULTIPLY.format(inline=INLINE)
    ),
    "fabric_fragment_rows": (
        "fabric_fragment_rows", _FRAGMENT.format(inline=INLINE, name="rows", form="")
    ),
    "fabric_fragment_columns": (
        "fabric_fragment_columns", _FRAGMENT.format(inline=INLINE, name="columns", form=".trans")
    ),
    "fabric_exp2": (
        "fabric_exp2",
        f"{INLINE} float fabric_exp2(float x) {{\n"
        '  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));\n  return x;\n}\n',
    ),
    "fabric_half_pair": ("fabric_half_pair", _to_halves("fabric_half_pair", False)),
    "fabric_half_pair_rest": (
        "fabric_half_pair_rest", _rest("fabric_half_pair_rest", "fabric_rest_pair", False)
    ),
    "fabric_bounded_pair": ("fabric_bounded_pair", _to_halves("fabric_bounded_pair", True)),
    "fabric_bounded_pair_rest": (
        "fabric_bounded_pair_rest", _rest("fabric_bounded_pair_rest", "fabric_bounded_rest", True)
    ),
}  # fmt: skip
"""By the name in TIR: the name in CUDA C++, and the function's text."""

LOAD, STORE = "fabric_load_matrix", "fabric_store_matrix"
_LOAD = f"""\
template <typename F, typename V>
{INLINE} void {LOAD}(F* fragments, int index, const V* place, int stride) {{
  typedef cuda::std::remove_reference_t<decltype(fragments->x[0])> T;
  nvcuda::wmma::load_matrix_sync(fragments[index], reinterpret_cast<const T*>(place), stride);
}}
"""
_STORE = f"""\
template <typename F, typename V>
{INLINE} void {STORE}(F* fragments, int index, V* place, int stride) {{
  typedef cuda::std::remove_reference_t<decltype(fragments->x[0])> T;
  nvcuda::wmma::store_matrix_sync(
      reinterpret_cast<T*>(place), fragments[index], stride, nvcuda::wmma::mem_row_major);
}}
"""

Call = Any
"""A TIR call that TVM's generator prints as it is, and what its text needs to be included."""


def _call(name: tvm.tirx.StringImm, *arguments: Any) -> Call:
    """Return the call of a function by its name in TIR; one of CUDA's own keeps its name."""
    if name.value in FUNCTIONS:
        known, text = FUNCTIONS[name.value]
        return cuda_func_call(known, *arguments, source_code=text)
    product = warpgroup_function(name.value) or copy_function(name.value)
    if product is not None:
        return cuda_func_call(name.value, *arguments, source_code=product)
    lanes = {tvm.DataType(str(argument.ty.dtype)).lanes for argument in arguments}
    if lanes <= {1}:
        return cuda_func_call(name.value, *arguments, source_code="")
    wide, text = _of_vectors(name.value, max(lanes), len(arguments))
    return cuda_func_call(wide, *arguments, source_code=text)


def _of_vectors(name: str, lanes: int, count: int) -> tuple[str, str]:
    """Return the name and the text of a function of floats for vectors, element by element."""
    vector, wide = f"float{lanes}", f"{name}_{lanes}"
    parameters = ", ".join(f"{vector} x{i}" for i in range(count))
    calls = [
        f"{name}({', '.join(f'x{i}.{element}' for i in range(count))})"
        for element in "xyzw"[:lanes]
    ]
    return wide, _function(vector, f"{wide}({parameters})", f"make_{vector}({', '.join(calls)})")


for _operation in ("call_pure_extern", "call_extern"):
    register_codegen(_operation)(_call)


@register_codegen("tvm_load_matrix_sync")
def _load(data: Any, m: Any, n: Any, k: Any, index: Any, place: Any, stride: Any, by: Any) -> Call:
    """Return the reading of a fragment; in which order is part of the fragment's type."""
    return cuda_func_call(LOAD, data, index, place, stride, source_code=_LOAD), ["mma"]


@register_codegen("tvm_store_matrix_sync")
def _store(data: Any, m: Any, n: Any, k: Any, index: Any, place: Any, stride: Any, by: Any) -> Call:
    """Return the writing of a fragment of sums, row by row."""
    return cuda_func_call(STORE, data, index, place, stride, source_code=_STORE), ["mma"]
