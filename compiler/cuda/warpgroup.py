"""Hopper's asynchronous copies and products, as device functions in CUDA C++.

`schedules/gpu/warpgroup.py` says what they do. The instructions are PTX's (PTX ISA, "wgmma",
"cp.async.bulk" and "mbarrier"); the compiler has no functions for them. Shared memory is described
to a product by one 64-bit word: the address in units of 16 bytes, 64 of which are between groups of
eight rows, and in the highest bits the order of the pieces of 128-byte rows (there, "Shared Memory
Matrix Layout").
"""

from __future__ import annotations

import re

PREFIX = "fabric_warpgroup_"
INLINE = "static __forceinline__ __device__"
_ADDRESS = "static_cast<unsigned>(__cvta_generic_to_shared({}))"
_SIMPLE = {
    "open": f"""\
{INLINE} void {PREFIX}open(void* p) {{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.mbarrier_init.release.cluster;"
               :: "r"({_ADDRESS.format("p")}) : "memory");
}}
""",
    "expect": f"""\
{INLINE} void {PREFIX}expect(void* p, int bytes) {{
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"({_ADDRESS.format("p")}), "r"(bytes) : "memory");
}}
""",
    "copy_block": f"""\
{INLINE} void {PREFIX}copy_block(void* place, const void* source, int bytes, void* barrier) {{
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1], %2, [%3];"
               :: "r"({_ADDRESS.format("place")}), "l"(source), "r"(bytes),
                  "r"({_ADDRESS.format("barrier")}) : "memory");
}}
""",
    "await": f"""\
{INLINE} void {PREFIX}await(void* p, int parity) {{
  int ended;
  do {{
    asm volatile("{{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                 "selp.b32 %0, 1, 0, p;}}"
                 : "=r"(ended) : "r"({_ADDRESS.format("p")}), "r"(parity) : "memory");
  }} while (!ended);
}}
""",
    "begin": f"""\
{INLINE} void {PREFIX}begin() {{
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}}
""",
    "close": f"""\
{INLINE} void {PREFIX}close() {{
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}}
""",
    "aligned": f"""\
{INLINE} int {PREFIX}aligned(const void* p) {{
  return static_cast<int>((0u - {_ADDRESS.format("p")}) & 1023u) >> 4;
}}
""",
}
_WAIT = re.compile(rf"{PREFIX}wait_(\d+)")
_PRODUCT = re.compile(rf"{PREFIX}multiply_(s8|f16)_(\d+)")


def warpgroup_function(name: str) -> str | None:
    """Return the text of a function by its name, with what it calls; None for others."""
    if product := _PRODUCT.fullmatch(name):
        return _multiply(product[1], int(product[2]))
    if waiting := _WAIT.fullmatch(name):
        instruction = f"wgmma.wait_group.sync.aligned {waiting[1]};"
        return f'{INLINE} void {name}() {{\n  asm volatile("{instruction}" ::: "memory");\n}}\n'
    return _SIMPLE.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None


def _multiply(factors: str, columns: int) -> str:
    """Return the product of 64 rows and 32 bytes of the depth with so many columns."""
    count = columns // 2
    dtype, constraint = ("int", "r") if factors == "s8" else ("float", "f")
    shape = f"m64n{columns}k{32 if factors == 's8' else 16}"
    types, signs = ("s32.s8.s8", "") if factors == "s8" else ("f32.f16.f16", ", 1, 1, 0")
    sums = ", ".join(f"%{i}" for i in range(count))
    left = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+{constraint}"(sums[first + {i}])' for i in range(count))
    return f"""\
{INLINE} void {PREFIX}multiply_{factors}_{columns}(
    {dtype}* sums, int first, int a, int b, int c, int d, const void* right) {{
  unsigned long long place = ({_ADDRESS.format("right")} & 0x3FFFFu) >> 4;
  place |= 1ull << 16 | 64ull << 32 | 1ull << 62;
  asm volatile("wgmma.mma_async.sync.aligned.{shape}.{types} "
               "{{{sums}}}, {{{left}}}, %{count + 4}, 1{signs};"
               : {outputs}
               : "r"(a), "r"(b), "r"(c), "r"(d), "l"(place) : "memory");
}}
"""
