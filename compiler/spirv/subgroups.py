"""Operations of a subgroup: the threads that run together."""

from __future__ import annotations

from .context import Context
from .grammar import BuiltIn, Capability, GroupOperation, Op, Scope
from .types import WORD
from .values import BOOL, FLOAT32, INT32, UINT32, Value

_REDUCTIONS = {
    "fabric_subgroup_add": {
        "float": Op.GroupNonUniformFAdd,
        "int": Op.GroupNonUniformIAdd,
    },
    "fabric_subgroup_max": {
        "float": Op.GroupNonUniformFMax,
        "int": Op.GroupNonUniformSMax,
    },
}
_BALLOT = "fabric_subgroup_ballot"
_BALLOT_WORDS = 4
_PLACES = {
    "fabric_subgroup_count": BuiltIn.NumSubgroups,
    "fabric_subgroup_id": BuiltIn.SubgroupId,
    "fabric_subgroup_lane": BuiltIn.SubgroupLocalInvocationId,
    "fabric_subgroup_size": BuiltIn.SubgroupSize,
}
SHUFFLES = frozenset(
    {"tvm_warp_shuffle", "tvm_warp_shuffle_up", "tvm_warp_shuffle_down", "tvm_warp_shuffle_xor"}
)
"""TVM's exchanges between the threads of a subgroup."""


class Subgroups:
    """Writes operations of subgroups.

    Parameters
    ----------
    context : Context
        The kernel's.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.arithmetic = context, context.arithmetic

    def knows(self, name: str) -> bool:
        """Tell whether there is a function of this name."""
        return name in _REDUCTIONS or name in _PLACES or name == _BALLOT

    def call(self, name: str, arguments: list[Value]) -> Value:
        """Return the result of a function that there is.

        Raises
        ------
        FabricError
            If it is not there for the arguments' type.
        """
        if name in _PLACES:
            return self._place(_PLACES[name])
        (value,) = arguments
        if name == _BALLOT:
            return self.ballot(value)
        dtype = value.dtype
        op = _REDUCTIONS[name].get(dtype.kind)
        if op is None or dtype.lanes > 1 or dtype.bits != WORD:
            raise self.context.refuse(f"{name} of {dtype}")
        self.context.builder.require(Capability.GroupNonUniform)
        self.context.builder.require(Capability.GroupNonUniformArithmetic)
        kind, scope = self.context.types.register(dtype, 1), self.arithmetic.word(Scope.Subgroup)
        # Where it stands decides who takes part, so it is not a value that is computed once.
        result = self.context.builder.value(op, kind, scope, GroupOperation.Reduce, value.id)
        return Value(dtype, (result,))

    def ballot(self, condition: Value) -> Value:
        """Return in which threads a condition holds: four words, the first thread's bit lowest.

        Raises
        ------
        FabricError
            If it is no scalar condition.
        """
        if condition.dtype != BOOL:
            raise self.context.refuse(f"{_BALLOT} of {condition.dtype}")
        self.context.builder.require(Capability.GroupNonUniform)
        self.context.builder.require(Capability.GroupNonUniformBallot)
        dtype = UINT32.of(_BALLOT_WORDS)
        kind, scope = self.context.types.register(dtype, 4), self.arithmetic.word(Scope.Subgroup)
        result = self.context.builder.value(Op.GroupNonUniformBallot, kind, scope, condition.id)
        return Value(dtype, (result,))

    def active(self) -> Value:
        """Return in which of a subgroup's first 32 threads this is reached, as a word."""
        return self.arithmetic.lane(self.ballot(self.arithmetic.constant(BOOL, True)), 0)

    def _place(self, name: BuiltIn) -> Value:
        self.context.builder.require(Capability.GroupNonUniform)
        return Value(INT32, (self.context.launch.word(name),))

    def shuffle(self, name: str, value: Value, place: Value, width: int, threads: int) -> Value:
        """Return the value of another thread of the same `width` threads, as CUDA's shuffles do.

        Parameters
        ----------
        name : str
            One of `SHUFFLES`.
        value : Value
            This thread's.
        place : Value
            The other's lane, or how far it is away.
        width : int
            A power of two; subgroups exchange within so many threads. A thread whose partner is
            outside gets its own value.
        threads : int
            Of a subgroup, which the backend is asked for.
        """
        dtype = value.dtype
        if dtype.is_float and dtype.bits < WORD:
            wide = self.context.conversions.cast(value, FLOAT32.of(dtype.lanes))
            wide = self.shuffle(name, wide, place, width, threads)
            return self.context.conversions.cast(wide, dtype)
        if dtype.bits > WORD and self.context.types.held(dtype).bits > WORD:
            # Subgroups exchange words; what is wider would be a feature of its own.
            bits = self.context.conversions.bits
            words = self.shuffle(name, bits.words(value), place, width, threads)
            return bits.from_words(words, dtype)
        if len(value.parts) > 1:
            raise self.context.refuse(f"{name} of {dtype}")
        self.context.subgroup_size = max(self.context.subgroup_size, threads)
        self.context.builder.require(Capability.GroupNonUniform)
        self.context.builder.require(Capability.GroupNonUniformShuffle)
        source = self._partner(name, Value(UINT32, place.parts), width)
        scope = self.arithmetic.word(Scope.Subgroup)
        kind = self.context.types.register(dtype, dtype.lanes)
        result = self.context.builder.value(
            Op.GroupNonUniformShuffle, kind, scope, value.id, source.id
        )
        return Value(dtype, (result,))

    def _partner(self, name: str, place: Value, width: int) -> Value:
        """Return the lane from which a thread takes the value."""
        sums = self.arithmetic
        lane = Value(UINT32, self._place(BuiltIn.SubgroupLocalInvocationId).parts)
        begin = sums.bitwise(Op.BitwiseAnd, lane, sums.constant(UINT32, -width))
        if name == "tvm_warp_shuffle":
            inside = sums.bitwise(Op.BitwiseAnd, place, sums.constant(UINT32, width - 1))
            return sums.bitwise(Op.BitwiseOr, begin, inside)
        source = {
            "tvm_warp_shuffle_up": sums.subtract,
            "tvm_warp_shuffle_down": sums.add,
            "tvm_warp_shuffle_xor": lambda a, b: sums.bitwise(Op.BitwiseXor, a, b),
        }[name](lane, place)
        # Below the first lane the difference wraps around to a large number.
        inside = sums.less(sums.subtract(source, begin), sums.constant(UINT32, width))
        return sums.select(inside, source, lane)
