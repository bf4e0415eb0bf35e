"""One kernel: from a lowered PrimFunc to a SPIR-V module and what the backend must know of it."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from ...targets.vulkan import SMALL_HALVES
from .abilities import Abilities
from .arithmetic import Arithmetic
from .builder import Builder
from .context import Context, Node, identity
from .conversions import Conversions
from .errors import refusal
from .grammar import AddressingModel, Capability, ExecutionMode, MemoryModel
from .interface import Argument, Interface
from .launch import LEAST_GROUPS, Launch
from .matrices import USES
from .memory import BufferMemory, View
from .pairs import PairArithmetic
from .statements import Statements
from .types import Types
from .values import DType, parse

_FEATURES = {
    Capability.Float16: "shaderFloat16",
    Capability.DenormPreserve: SMALL_HALVES,
    Capability.Float64: "shaderFloat64",
    Capability.Int64: "shaderInt64",
    Capability.Int16: "shaderInt16",
    Capability.Int8: "shaderInt8",
    Capability.GroupNonUniformArithmetic: "subgroupArithmetic",
    Capability.GroupNonUniformBallot: "subgroupBallot",
    Capability.GroupNonUniformShuffle: "subgroupShuffle",
    Capability.StorageBuffer16BitAccess: "storageBuffer16BitAccess",
    Capability.StorageBuffer8BitAccess: "storageBuffer8BitAccess",
    Capability.VulkanMemoryModel: "vulkanMemoryModel",
    Capability.PhysicalStorageBufferAddresses: "bufferDeviceAddress",
    Capability.DotProduct: "shaderIntegerDotProduct",
    Capability.CooperativeMatrixKHR: "cooperativeMatrix",
}
"""The feature of a Vulkan device that a capability asks for."""
HALF_BITS = 16


@dataclass(frozen=True)
class KernelCode:
    """A kernel's module.

    Attributes
    ----------
    name : str
        What host code calls it.
    vulkan : pair of int
        The version of Vulkan that it needs.
    addresses, spilled, foldable : bool
        How it takes its arguments, see `interface` and `launch`.
    block_bytes, grid_offset : int
        The size of the argument block and where it has the grid's extents.
    subgroup_size : int
        Threads that its subgroups must have; 0 for any number.
    shared_bytes : int
        Memory of a work-group.
    threads : tuple of int
        The size of a work-group; 1 along an axis where it is not known.
    arguments : tuple of Argument
        In the order of the PrimFunc's parameters.
    launch_tags : tuple of str
        What each number that host code passes after the arguments is the extent of.
    features : tuple of str
        The features that a device must have.
    spirv : bytes
        The module, of little-endian words.
    """

    name: str
    vulkan: tuple[int, int]
    addresses: bool
    spilled: bool
    foldable: bool
    block_bytes: int
    grid_offset: int
    subgroup_size: int
    shared_bytes: int
    threads: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    launch_tags: tuple[str, ...]
    features: tuple[str, ...]
    spirv: bytes


@dataclass
class _Survey:
    """What must be known before the first instruction is written."""

    extents: dict[str, Node]
    matrices: bool = False

    def extent(self, tag: str) -> int | None:
        """Return the extent of an axis, 1 where there is none; None where it is not a number."""
        extent = self.extents.get(tag)
        if extent is None:
            return 1
        return int(extent.value) if isinstance(extent, tirx.IntImm) else None


def generate(function: tirx.PrimFunc, target: tvm.target.Target) -> KernelCode:
    """Return the module of a kernel.

    Parameters
    ----------
    function : PrimFunc
        A kernel whose launch TVM has split from the host's code.
    target : tvm.target.Target
        Of the kind ``vulkan``.

    Raises
    ------
    FabricError
        If it uses what there is no code for, or what the target lacks.
    """
    name, abilities = str(function.attrs["global_symbol"]), Abilities.of(target)
    refuse, builder = refusal(name), Builder()
    types = Types(builder, abilities, refuse)
    arithmetic = Arithmetic if abilities.int64 else PairArithmetic
    conversions = Conversions(arithmetic(builder, types))
    survey = _survey(function.body, _Survey({}))
    foldable = any(
        (survey.extent(f"blockIdx.{axis}") or LEAST_GROUPS + 1) > LEAST_GROUPS for axis in "xyz"
    )
    threads = [survey.extent(f"threadIdx.{axis}") or 1 for axis in "xyz"]
    parameters = [_scalar(parameter) for parameter in function.params]
    distinct = bool(function.attrs.get("tirx.noalias", False))
    interface = Interface(builder, types, parameters, foldable, distinct, refuse)
    launch = Launch(builder, types, interface, threads)
    context = Context(
        abilities,
        builder,
        types,
        conversions.arithmetic,
        conversions,
        interface,
        launch,
        refuse,
        coherent=survey.matrices,
    )
    _bind_parameters(context, function.params, parameters)
    Statements(context).visit(function.body)
    builder.leave()
    interface.finish()
    tags = [str(tag) for tag in function.attrs["tirx.kernel_launch_params"]]
    return _finished(name, context, threads, tags)


def _survey(node: Node, survey: _Survey) -> _Survey:
    """Add what a statement tells before it is written."""
    kind = type(node)
    if kind is tirx.SeqStmt:
        for statement in node.seq:
            _survey(statement, survey)
    elif kind is tirx.IfThenElse:
        _survey(node.then_case, survey)
        if node.else_case is not None:
            _survey(node.else_case, survey)
    elif kind in (tirx.AttrStmt, tirx.For, tirx.While):
        if kind is tirx.AttrStmt and node.attr_key == "thread_extent":
            survey.extents[str(node.node.thread_tag)] = node.value
        _survey(node.body, survey)
    elif kind is tirx.AllocBuffer and str(node.buffer.ty.storage_scope) in USES:
        survey.matrices = True
    return survey


def _scalar(parameter: Node) -> DType | None:
    """Return the type of a scalar parameter; None for a buffer."""
    if isinstance(parameter.ty, tvm.ir.PointerType):
        return None
    return parse(str(parameter.ty.dtype))


def _bind_parameters(context: Context, parameters: Node, scalars: list[DType | None]) -> None:
    """Make the parameters' values and views known."""
    for index, (parameter, dtype) in enumerate(zip(parameters, scalars, strict=True)):
        if dtype is not None:
            context.parameters[identity(parameter)] = index
            continue
        element = parse(str(parameter.ty.element_type.dtype))
        if element is None:
            raise context.refuse(f"a buffer of {parameter.ty.element_type}")
        memory = BufferMemory(context.interface, context.conversions, index)
        context.views[identity(parameter)] = View(memory, element)


def _finished(name: str, context: Context, threads: list[int], tags: list[str]) -> KernelCode:
    """Assemble the module in the oldest version of SPIR-V that has what it uses."""
    interface, builder = context.interface, context.builder
    addressing, memory = AddressingModel.Logical, MemoryModel.GLSL450
    version, vulkan = (1, 3), (1, 1)
    if interface.addresses:
        addressing = AddressingModel.PhysicalStorageBuffer64
        version, vulkan = (1, 5), (1, 2)
    if Capability.Float16 in builder.capabilities and context.abilities.small_halves:
        # Else a driver may take what is below 2^-14 for zero, as NVIDIA's does.
        builder.require(Capability.DenormPreserve)
        builder.compute_by(ExecutionMode.DenormPreserve, HALF_BITS)
        version, vulkan = (1, 5), (1, 2)
    if context.coherent:
        memory = MemoryModel.Vulkan
        builder.require(Capability.VulkanMemoryModel)
        version, vulkan = (1, 6), (1, 3)
    features = [_FEATURES[c] for c in sorted(builder.capabilities) if c in _FEATURES]
    if context.subgroup_size:
        features += ["subgroupSizeControl", "computeFullSubgroups"]
    x, y, z = threads
    return KernelCode(
        name=name,
        vulkan=vulkan,
        addresses=interface.addresses,
        spilled=interface.spilled,
        foldable=interface.foldable,
        block_bytes=interface.block_bytes,
        grid_offset=interface.grid_offset,
        subgroup_size=context.subgroup_size,
        shared_bytes=context.shared_bytes,
        threads=(x, y, z),
        arguments=tuple(interface.arguments),
        launch_tags=tuple(tags),
        features=tuple(features),
        spirv=builder.assemble(version, addressing, memory),
    )
