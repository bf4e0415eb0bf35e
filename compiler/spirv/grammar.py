"""The numbers behind SPIR-V's names, as far as the generator uses them.

From Khronos's SPIR-V specification 1.6 (unified1), its extended instruction set GLSL.std.450 and
SPV_KHR_cooperative_matrix. The names are the specification's own, without the prefix "Op".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAGIC = 0x07230203
"""The first word of every module."""
GLSL = "GLSL.std.450"
"""The extended instruction set of mathematical functions."""


class Op(IntEnum):
    """Instructions."""

    Extension = 10
    ExtInstImport = 11
    ExtInst = 12
    MemoryModel = 14
    EntryPoint = 15
    ExecutionMode = 16
    Capability = 17
    TypeVoid = 19
    TypeBool = 20
    TypeInt = 21
    TypeFloat = 22
    TypeVector = 23
    TypeArray = 28
    TypeRuntimeArray = 29
    TypeStruct = 30
    TypePointer = 32
    TypeFunction = 33
    ConstantTrue = 41
    ConstantFalse = 42
    Constant = 43
    ConstantComposite = 44
    SpecConstantFalse = 49
    SpecConstant = 50
    SpecConstantComposite = 51
    Function = 54
    FunctionEnd = 56
    Variable = 59
    Load = 61
    Store = 62
    AccessChain = 65
    Decorate = 71
    MemberDecorate = 72
    CompositeConstruct = 80
    CompositeExtract = 81
    CopyObject = 83
    ConvertFToU = 109
    ConvertFToS = 110
    ConvertSToF = 111
    ConvertUToF = 112
    UConvert = 113
    SConvert = 114
    FConvert = 115
    Bitcast = 124
    SNegate = 126
    FNegate = 127
    IAdd = 128
    FAdd = 129
    ISub = 130
    FSub = 131
    IMul = 132
    FMul = 133
    UDiv = 134
    SDiv = 135
    FDiv = 136
    UMod = 137
    FRem = 140
    UMulExtended = 151
    LogicalEqual = 164
    LogicalNotEqual = 165
    LogicalOr = 166
    LogicalAnd = 167
    LogicalNot = 168
    Select = 169
    IEqual = 170
    INotEqual = 171
    UGreaterThanEqual = 174
    ULessThan = 176
    SLessThan = 177
    ULessThanEqual = 178
    SLessThanEqual = 179
    FOrdEqual = 180
    FUnordNotEqual = 183
    FOrdLessThan = 184
    FOrdLessThanEqual = 188
    ShiftRightLogical = 194
    ShiftRightArithmetic = 195
    ShiftLeftLogical = 196
    BitwiseOr = 197
    BitwiseXor = 198
    BitwiseAnd = 199
    Not = 200
    BitFieldInsert = 201
    BitFieldSExtract = 202
    BitFieldUExtract = 203
    BitCount = 205
    ControlBarrier = 224
    AtomicIAdd = 234
    Phi = 245
    LoopMerge = 246
    SelectionMerge = 247
    Label = 248
    Branch = 249
    BranchConditional = 250
    Return = 253
    GroupNonUniformBallot = 339
    GroupNonUniformShuffle = 345
    GroupNonUniformIAdd = 349
    GroupNonUniformFAdd = 350
    GroupNonUniformSMax = 356
    GroupNonUniformFMax = 358
    SDot = 4450
    TypeCooperativeMatrixKHR = 4456
    CooperativeMatrixLoadKHR = 4457
    CooperativeMatrixStoreKHR = 4458
    CooperativeMatrixMulAddKHR = 4459


class Glsl(IntEnum):
    """Instructions of GLSL.std.450."""

    RoundEven = 2
    Trunc = 3
    FAbs = 4
    SAbs = 5
    Floor = 8
    Ceil = 9
    Sin = 13
    Cos = 14
    Tan = 15
    Asin = 16
    Acos = 17
    Atan = 18
    Sinh = 19
    Cosh = 20
    Tanh = 21
    Asinh = 22
    Acosh = 23
    Atanh = 24
    Atan2 = 25
    Pow = 26
    Exp = 27
    Log = 28
    Exp2 = 29
    Log2 = 30
    Sqrt = 31
    InverseSqrt = 32
    FMin = 37
    UMin = 38
    SMin = 39
    FMax = 40
    UMax = 41
    SMax = 42
    FClamp = 43
    Fma = 50
    Ldexp = 53
    PackHalf2x16 = 58
    UnpackHalf2x16 = 62
    FindUMsb = 75


class Capability(IntEnum):
    """What a module asks of the device."""

    Shader = 1
    Float16 = 9
    Float64 = 10
    Int64 = 11
    Int16 = 22
    Int8 = 39
    GroupNonUniform = 61
    GroupNonUniformArithmetic = 63
    GroupNonUniformBallot = 64
    GroupNonUniformShuffle = 65
    StorageBuffer16BitAccess = 4433
    StorageBuffer8BitAccess = 4448
    DenormPreserve = 4464
    VulkanMemoryModel = 5345
    PhysicalStorageBufferAddresses = 5347
    DotProductInput4x8BitPacked = 6018
    DotProduct = 6019
    CooperativeMatrixKHR = 6022


class StorageClass(IntEnum):
    """Kinds of memory."""

    Input = 1
    Workgroup = 4
    Function = 7
    PushConstant = 9
    StorageBuffer = 12
    PhysicalStorageBuffer = 5349


class Decoration(IntEnum):
    """What is said of a value or a type beside its definition."""

    SpecId = 1
    Block = 2
    ArrayStride = 6
    BuiltIn = 11
    Restrict = 19
    Aliased = 20
    NonWritable = 24
    Binding = 33
    DescriptorSet = 34
    Offset = 35
    NoContraction = 42


class BuiltIn(IntEnum):
    """Values that the device provides."""

    NumWorkgroups = 24
    WorkgroupSize = 25
    WorkgroupId = 26
    LocalInvocationId = 27
    SubgroupSize = 36
    NumSubgroups = 38
    SubgroupId = 40
    SubgroupLocalInvocationId = 41


class AddressingModel(IntEnum):
    """Whether buffers have addresses."""

    Logical = 0
    PhysicalStorageBuffer64 = 5348


class MemoryModel(IntEnum):
    """Which rules the order of memory accesses follows."""

    GLSL450 = 1
    Vulkan = 3


class ExecutionMode(IntEnum):
    """How an entry point computes."""

    DenormPreserve = 4459


class ExecutionModel(IntEnum):
    """The stage that an entry point is for."""

    GLCompute = 5


class Scope(IntEnum):
    """Who takes part in an operation."""

    Device = 1
    Workgroup = 2
    Subgroup = 3
    QueueFamily = 5


class MemorySemantics(IntFlag):
    """What an operation orders."""

    AcquireRelease = 0x8
    WorkgroupMemory = 0x100
    MakeAvailable = 0x2000
    MakeVisible = 0x4000


class MemoryAccess(IntFlag):
    """How a load or store is made."""

    Aligned = 0x2
    NonPrivatePointer = 0x20


class GroupOperation(IntEnum):
    """How a value is combined over a subgroup."""

    Reduce = 0


class PackedVectorFormat(IntEnum):
    """How a word holds a vector."""

    Format4x8Bit = 0


class MatrixUse(IntEnum):
    """The role of a cooperative matrix."""

    MatrixA = 0
    MatrixB = 1
    MatrixAccumulator = 2


class MatrixLayout(IntEnum):
    """The order of a cooperative matrix in memory."""

    RowMajor = 0
    ColumnMajor = 1


class MatrixOperands(IntFlag):
    """Which matrices of a product hold signed integers."""

    MatrixASigned = 0x1
    MatrixBSigned = 0x2
    MatrixCSigned = 0x4
    MatrixResultSigned = 0x8


NONE = 0
"""No control hints: of a function, a selection or a loop."""
UNROLL = 1
"""The loop control that asks for unrolling."""
