"""What a target's devices can do, as far as the generator asks."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from ...targets.vulkan import ADDRESS_KEY, PUSH_CONSTANTS, SMALL_HALVES_KEY


@dataclass(frozen=True)
class Abilities:
    """What kernels of a target may use.

    Attributes
    ----------
    addresses : bool
        Whether buffers come by their 64-bit addresses; else by descriptors. Where elements of 8 or
        16 bits may lie in buffers, this is for devices that compute in such numbers, too: SPIR-V
        lets no others make pointers to them.
    push_constants : int
        Bytes that may come with a launch itself.
    float16, float64, int8, int16, int64 : bool
        Whether the device computes in these types.
    small_halves : bool
        Whether 16-bit floats below 2^-14 keep their value.
    buffers8, buffers16 : bool
        Whether buffers may hold elements of 8 or 16 bits.
    dot : bool
        Whether the dot product of four bytes is an instruction.
    matrices : bool
        Whether subgroups multiply matrices.
    """

    addresses: bool
    push_constants: int
    float16: bool
    float64: bool
    int8: bool
    int16: bool
    int64: bool
    small_halves: bool
    buffers8: bool
    buffers16: bool
    dot: bool
    matrices: bool

    @staticmethod
    def of(target: tvm.target.Target) -> Abilities:
        """Read the attributes of a TVM target of the kind ``vulkan``."""
        attributes = target.attrs

        def has(name: str) -> bool:
            return bool(attributes.get(f"supports_{name}", False))

        by_address = (has("int8") or not has("8bit_buffer")) and (
            (has("int16") and has("float16")) or not has("16bit_buffer")
        )
        return Abilities(
            addresses=ADDRESS_KEY in target.keys and by_address,
            push_constants=int(attributes.get("max_push_constants_size", PUSH_CONSTANTS)),
            float16=has("float16"),
            float64=has("float64"),
            int8=has("int8"),
            int16=has("int16"),
            int64=has("int64"),
            small_halves=SMALL_HALVES_KEY in target.keys,
            buffers8=has("8bit_buffer"),
            buffers16=has("16bit_buffer"),
            dot=has("integer_dot_product"),
            matrices=has("cooperative_matrix"),
        )
