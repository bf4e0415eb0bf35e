"""Functions in LLVM's language that our kernels call, linked into each code object and inlined.

The exchanges within a wave are a butterfly: each step adds, or takes the larger of, a value and its
partner's, so that all threads end with the same bits in a fixed order. The partners 1 and 2 places
away are permutations of four neighbours; once four agree, mirroring eight and then sixteen brings
the partner's. All four are modifiers of an operand (DPP) and cost nothing extra. Sixteen away is
another row: ``v_permlanex16`` from gfx10 on, and the crossbar of shared memory before, which also
serves 32 away. A thread that does not run hands over what changes nothing.
"""

from __future__ import annotations

ABI = 500
"""The version of the code object, which ROCm 6.0 reads; LLVM's default asks a later one."""
QUAD_1032, QUAD_2301, HALF_MIRROR, MIRROR = 0xB1, 0x4E, 0x141, 0x140
"""Controls of DPP (AMD, "Instruction Set Architecture", "DPP")."""
SWAP_16 = 0x401F
"""The control of ds_swizzle: the partner's number is the thread's own, exclusive or 16."""
LOW, HIGH = 0x76543210, 0xFEDCBA98
"""v_permlanex16's choice of a thread in the other row: the one of the same number."""
HEAD = "linkonce_odr hidden"
ATTRIBUTES = "alwaysinline convergent nounwind"

_MODULE = f"""\
target triple = "amdgcn-amd-amdhsa-hcc"
!llvm.module.flags = !{{!0}}
!0 = !{{i32 1, !"amdhsa_code_object_version", i32 {ABI}}}
declare void @llvm.amdgcn.s.barrier()
declare float @llvm.rint.f32(float)
declare float @llvm.maxnum.f32(float, float)
declare float @llvm.minnum.f32(float, float)
declare i32 @llvm.smax.i32(i32, i32)
declare i32 @llvm.amdgcn.mbcnt.lo(i32, i32)
declare i32 @llvm.amdgcn.mbcnt.hi(i32, i32)
declare i32 @llvm.amdgcn.update.dpp.i32(i32, i32, i32 immarg, i32 immarg, i32 immarg, i1 immarg)
declare i32 @llvm.amdgcn.permlanex16.i32(i32, i32, i32, i32, i1 immarg, i1 immarg)
declare i32 @llvm.amdgcn.ds.swizzle(i32, i32 immarg)
declare i32 @llvm.amdgcn.ds.bpermute(i32, i32)
declare i64 @llvm.amdgcn.ballot.i64(i1)

define {HEAD} void @fabric_barrier() {ATTRIBUTES} {{
  fence syncscope("workgroup") release
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire
  ret void
}}

define {HEAD} i32 @fabric_byte(float %x) {ATTRIBUTES} {{
  %even = call float @llvm.rint.f32(float %x)
  %above = call float @llvm.maxnum.f32(float %even, float -128.0)
  %inside = call float @llvm.minnum.f32(float %above, float 127.0)
  %whole = fptosi float %inside to i32
  %byte = and i32 %whole, 255
  ret i32 %byte
}}
"""
_LANE_32 = """\
  %lane = call i32 @llvm.amdgcn.mbcnt.lo(i32 -1, i32 0)
"""
_LANE_64 = """\
  %low = call i32 @llvm.amdgcn.mbcnt.lo(i32 -1, i32 0)
  %lane = call i32 @llvm.amdgcn.mbcnt.hi(i32 -1, i32 %low)
"""
_COMBINE = {
    ("add", "float"): "fadd float {0}, {1}",
    ("add", "int"): "add i32 {0}, {1}",
    ("max", "float"): "call float @llvm.maxnum.f32(float {0}, float {1})",
    ("max", "int"): "call i32 @llvm.smax.i32(i32 {0}, i32 {1})",
}


def lane(wave: int) -> str:
    """Return the text that defines ``%lane``, the thread's number in its wave."""
    return _LANE_32 if wave == 32 else _LANE_64


def functions(wave: int) -> str:
    """Return the functions for waves of 32 or 64 threads as a module's text."""
    own = f"define {HEAD} i32 @fabric_lane() {ATTRIBUTES} {{\n{lane(wave)}  ret i32 %lane\n}}\n"
    reductions = [_reduction(name, dtype, wave) for name, dtype in _COMBINE]
    return "\n".join([_MODULE, own, *reductions])


def _reduction(name: str, dtype: str, wave: int) -> str:
    """Return the function that combines a value of each thread of a wave, in all of them."""
    llvm = {"float": "float", "int": "i32"}[dtype]
    lines = [f"define {HEAD} {llvm} @fabric_subgroup_{name}_{dtype}({llvm} %x0) {ATTRIBUTES} {{"]
    lines += [lane(wave) + "  %active = call i64 @llvm.amdgcn.ballot.i64(i1 true)"]
    distances = [1, 2, 4, 8, 16] + ([32] if wave == 64 else [])
    for step, distance in enumerate(distances):
        mine, new = f"%x{step}", f"%x{step + 1}"
        lines += [f"  %w{step} = bitcast {llvm} {mine} to i32"]
        lines += _partner(step, distance, wave, zero=name == "add")
        lines += [f"  %y{step} = bitcast i32 %p{step} to {llvm}"]
        lines += [f"  {new} = " + _COMBINE[name, dtype].format(mine, f"%y{step}")]
    return "\n".join([*lines, f"  ret {llvm} %x{len(distances)}\n}}\n"])


def _partner(step: int, distance: int, wave: int, zero: bool) -> list[str]:
    """Return the lines that define ``%p`` of a step: the partner's word.

    Where the partner does not run it is zero with `zero`, else the thread's own.
    """
    word, out = f"%w{step}", f"%p{step}"
    other = "0" if zero else word
    control = {1: QUAD_1032, 2: QUAD_2301, 4: HALF_MIRROR, 8: MIRROR}.get(distance)
    if control is not None:
        call = f"@llvm.amdgcn.update.dpp.i32(i32 {other}, i32 {word}, i32 {control}"
        return [f"  {out} = call i32 {call}, i32 15, i32 15, i1 false)"]
    if wave == 32:
        call = f"@llvm.amdgcn.permlanex16.i32(i32 {other}, i32 {word}, i32 {LOW}"
        return [f"  {out} = call i32 {call}, i32 {HIGH - (1 << 32)}, i1 false, i1 false)"]
    if distance == 16:
        lines = [f"  %s{step} = call i32 @llvm.amdgcn.ds.swizzle(i32 {word}, i32 {SWAP_16})"]
    else:
        lines = [
            f"  %o{step} = xor i32 %lane, {distance}",
            f"  %a{step} = shl i32 %o{step}, 2",
            f"  %s{step} = call i32 @llvm.amdgcn.ds.bpermute(i32 %a{step}, i32 {word})",
        ]
    return [
        *lines,
        f"  %n{step} = xor i32 %lane, {distance}",
        f"  %l{step} = zext i32 %n{step} to i64",
        f"  %b{step} = lshr i64 %active, %l{step}",
        f"  %t{step} = trunc i64 %b{step} to i1",
        f"  {out} = select i1 %t{step}, i32 %s{step}, i32 {other}",
    ]
